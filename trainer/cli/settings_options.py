"""Options for run settings: one for each field, and a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..config.settings import RunSettings, parse_settings
from ..config.validation import read_json_file
from ..errors import BadInput


def read_settings(options: argparse.Namespace, defaults: dict[str, Any] | None = None) -> RunSettings:
    """Return run settings: options override the --settings file, which overrides `defaults`.

    Raises BadInput that names every fault.
    """
    from_file = read_json_file(options.settings, "the run settings") if options.settings else {}
    if not isinstance(from_file, dict):
        raise BadInput(
            f'{options.settings} is not a file of run settings: it must be a JSON object, such as {{"seed": 1}}.'
        )
    given = {name: getattr(options, name) for name in RunSettings.model_fields}
    given = {
        name: _value(text, RunSettings.model_fields[name].annotation)
        for name, text in given.items()
        if text is not None
    }
    return parse_settings({**(defaults or {}), **from_file, **given})


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add one option for each field of RunSettings; their values stay text until `read_settings` checks them."""
    group = command.add_argument_group("run settings")
    group.add_argument(
        "--settings", metavar="FILE", type=Path, help="JSON file with any of these settings; options override it."
    )
    for name, field in RunSettings.model_fields.items():
        default = json.dumps(field.default) if field.annotation is bool else field.default
        text = f"{field.description} (default: {'empty' if default == '' else default})"
        group.add_argument(
            option_of(name), dest=name, metavar=placeholder(field.annotation), help=text.replace("%", "%%")
        )


def option_of(field: str) -> str:
    """Return the option name of a field."""
    return "--" + field.replace("_", "-")


def placeholder(annotation: Any) -> str:
    """Return the word for a value of this type in an option's help."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {int: "N", float: "X", str: "TEXT", bool: "true|false"}[annotation]


def _value(text: str, annotation: Any) -> str | int | float | bool:
    """Convert text to the field's number type or to a truth value; text that is neither stays, to be reported with the
    other faults."""
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if annotation not in (int, float):
        return text
    try:
        return annotation(text)
    except ValueError:
        return text
