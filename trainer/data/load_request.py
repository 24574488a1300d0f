"""Reading a request together with its parquet, with the faults of both in one message."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.request import FineTuneRequest, parse_request
from ..config.validation import decode_json, read_json_file
from ..errors import BadInput
from ..paths import path_kind, typed_path
from .dataset_files import MAGIC, dataset_files, is_pattern, match_files
from .hub_files import NotDownloaded, find_on_hub, is_hub_address
from .parquet import column_faults


def load_request(
    source: Path | str | bytes | dict[str, Any],
    input_folder: Path | None = None,
    beside: Path | None = None,
    download: bool = True,
) -> tuple[FineTuneRequest, Path]:
    """Load a request from a file (a Path), JSON text or decoded JSON; returns it with the path of its parquet.

    `resource` is looked up as in `resolve_resource`; `beside` defaults to the request file's folder. Raises
    BadInput naming every fault at once: fields, resource, and columns that are missing or of the wrong type.
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
            path = resolve_resource(resource, input_folder, beside, download)
            found = column_faults(params if isinstance(params, dict) else {}, path)
            faults = [f"training_params.{fault}" for fault in found]
        except NotDownloaded:
            parse_request(data)
            raise
        except BadInput as error:
            faults = [f"resource: {error}"]
    request = parse_request(data, more_faults=faults)
    assert path is not None
    return request, path


def resolve_resource(
    resource: str, input_folder: Path | None = None, beside: Path | None = None, download: bool = True
) -> Path:
    """Find the dataset of a request, a parquet, a folder or a pattern of several: `resource` itself, then without its
    first part, which may be a branch name.

    Relative paths are looked up in the current folder, in `beside` (the request file's folder), then in
    `input_folder`. Nothing but names is read. An address on the Hugging Face hub is downloaded, unless `download` is
    False. Raises BadInput naming every place tried, and RunFailed where a download fails.
    """
    if is_hub_address(resource):
        return find_on_hub(resource, download)
    path = typed_path(resource)
    starts = [Path(), *(folder for folder in (beside, input_folder) if folder is not None)]
    places = list(dict.fromkeys(start / name for name in resource_names(path) for start in starts))
    kinds = {place: path_kind(place) for place in places}
    if found := next((place for place in places if kinds[place] == "file"), None):
        return found
    for place in places:
        if kinds[place] == "folder" or (kinds[place] == "missing" and is_pattern(place) and any(match_files(place))):
            dataset_files(place)
            return place
    if is_pattern(path):
        raise BadInput(f'"{resource}" is a pattern that no parquet file matches; tried {_listed(places)}.')
    if "://" in resource:
        raise BadInput(f'"{resource}" is an address; download the parquet first and give its path.')
    raise BadInput(f'"{resource}" is not found; tried {_listed(places)}.')


def resource_names(path: Path) -> list[Path]:
    """Paths that a resource may mean: itself, and without its first part, which may be a branch name.

    A pattern keeps its first part unless a folder is left before it: with a mistyped folder, `typo/*.parquet` would
    mean every parquet there is.
    """
    if path.is_absolute() or len(path.parts) < 2 or MAGIC.search(path.parts[1]):
        return [path]
    return [path, Path(*path.parts[1:])]


def _listed(places: Sequence[Path]) -> str:
    return ", ".join(str(place.absolute()) for place in places)
