"""A whole request with its parquet: read, checked, and every fault of both named in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import BadInput
from .resource import column_faults, resolve_resource
from .schema import FineTuneRequest, decode_json, parse_request, read_json_file


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
