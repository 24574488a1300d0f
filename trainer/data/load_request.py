"""A whole request with its parquet: read, checked, and every fault of both named in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config.request import FineTuneRequest, parse_request
from ..config.validation import decode_json, read_json_file
from ..errors import BadInput
from .parquet import column_faults


def load_request(
    source: Path | str | bytes | dict[str, Any], input_folder: Path | None = None, beside: Path | None = None
) -> tuple[FineTuneRequest, Path]:
    """The request of a JSON file (a Path), of JSON text, or of decoded JSON, and the parquet that it names.

    A relative `resource` starts in the current folder, in the request file's folder (in `beside`, for one that is not
    in a file), or in `input_folder`. Raises BadInput naming every fault at once: fields, the resource, columns that
    the parquet lacks or that cannot serve.
    """
    if isinstance(source, Path):
        beside = source.parent
        data = read_json_file(source, "the request")
    else:
        data = decode_json(source, "the request") if isinstance(source, str | bytes) else source
    path = None
    faults: list[str] = []
    resource = data.get("resource") if isinstance(data, dict) else None
    if isinstance(resource, str) and resource:
        params = data.get("training_params")
        try:
            path = resolve_resource(resource, input_folder, beside)
            found = column_faults(params if isinstance(params, dict) else {}, path)
            faults = [f"training_params.{fault}" for fault in found]
        except BadInput as error:
            faults = [f"resource: {error}"]
    request = parse_request(data, more_faults=faults)
    assert path is not None
    return request, path


def resolve_resource(resource: str, input_folder: Path | None = None, beside: Path | None = None) -> Path:
    """The parquet file that `resource` names: an existing path; a path under the input folder; the same with the
    first part, which may be a branch name, dropped. Relative paths start in the current folder, then in `beside`
    (the folder of the request file).

    Raises BadInput naming every place tried; the content is not looked at.
    """
    path = Path(resource)
    starts = [Path(), *(folder for folder in (beside, input_folder) if folder is not None)]
    names = [path]
    if not path.is_absolute() and len(path.parts) > 1:
        names.append(Path(*path.parts[1:]))
    places = list(dict.fromkeys(start / name for name in names for start in starts))
    try:
        for place in places:
            if place.is_file():
                return place
        folder = next((place for place in places if place.is_dir()), None)
    except ValueError:
        raise BadInput(f"{json.dumps(resource)} is not a path.") from None
    if folder is not None:
        raise BadInput(f'"{resource}": {folder} is a folder; name the parquet file in it.')
    raise BadInput(f'"{resource}" is not found; tried {", ".join(str(place.absolute()) for place in places)}.')
