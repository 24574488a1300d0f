"""JSON that people wrote: decoding it, and saying what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadInput


def read_json_file(path: Path, what: str) -> Any:
    """Decode a JSON file; `what` names it in messages. Raises BadInput when it cannot be read or is not JSON."""
    try:
        return decode_json(path.read_bytes(), f"{what} {path}")
    except OSError as error:
        raise BadInput(f"Cannot read {what} {path}: {error.strerror or error}.") from error


def decode_json(text: str | bytes, what: str) -> Any:
    """Decode JSON; `what` names it in messages.

    Raises BadInput with line and column, also for text that is not Unicode and for repeated keys.
    """
    try:
        data = json.loads(text, object_pairs_hook=_no_repeated_keys)
        json.dumps(data, ensure_ascii=False).encode()
        return data
    except BadInput:
        raise
    except json.JSONDecodeError as error:
        raise BadInput(f"{what} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{what} is not valid JSON: it is not UTF-8 text.") from None
    except UnicodeEncodeError:
        raise BadInput(f"{what} holds an escape that is half a character (a lone surrogate); remove it.") from None
    except ValueError as error:
        raise BadInput(f"{what} is not valid JSON: {error}.") from None
    except RecursionError:
        raise BadInput(f"{what} is not valid JSON: it is nested too deeply.") from None


def describe_fault(fault: Any) -> str:
    """Describe a pydantic error in one line: field, value and what is allowed."""
    field = ".".join(str(part) for part in fault["loc"]) or "request"
    kind, context, value = fault["type"], fault.get("ctx", {}), fault.get("input")
    shown = json.dumps(value, default=str, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    if kind == "missing":
        return f"{field}: is required but missing"
    if kind == "extra_forbidden":
        return f"{field}: unknown field (value {shown}); remove it or check its spelling"
    if kind in ("string_too_short", "too_short"):
        return f"{field}: is required but empty (value {shown})"
    if kind == "literal_error":
        return f"{field}: {shown} is not one of {context['expected']}"
    if kind == "greater_than_equal":
        return f"{field}: {shown} is too small, the minimum is {context['ge']}"
    if kind == "greater_than":
        return f"{field}: {shown} is not allowed, it must be greater than {context['gt']}"
    if kind == "less_than_equal":
        return f"{field}: {shown} is too large, the maximum is {context['le']}"
    names = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "texts_type": "text or a list of texts",
        "list_type": "a list",
        "model_type": "an object",
        "model_attributes_type": "an object",
        "dict_type": "an object",
    }
    return f"{field}: {shown} is not {names[kind]}" if kind in names else f"{field}: {shown}: {fault['msg']}"


def count(items: list[Any], noun: str) -> str:
    """Format a number of items: `1 fault`, `2 faults`."""
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise BadInput(f'The JSON gives "{key}" twice; keep one of them.')
        result[key] = value
    return result
