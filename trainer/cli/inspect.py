"""`inspect`: the columns of a dataset, the sizes of its images and its unusable rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..config.columns import COLUMN_FIELDS, CONTROL_COLUMNS, Columns
from ..config.request import too_many_controls
from ..config.settings import RunSettings
from ..data.columns import MOST_CONTROLS, guess_columns
from ..data.dataset import EditDataset
from ..data.load_request import resolve_resource
from ..data.parquet import column_faults, parquet_columns
from ..errors import OK, BadInput, printable
from ..families.registry import find_family
from .console import Console
from .runner import consume, load_dataset, load_model
from .settings_options import option_of


def _check_for_model(console: Console, dataset: EditDataset, base_model: str) -> None:
    """Add the rows that the model cannot take to the dataset's report."""
    from ..encoding.row_checks import RowChecks
    from ..models.captions import CaptionRules

    rules = CaptionRules(load_model(base_model, {}))
    if fault := too_many_controls(base_model, len(dataset.columns.controls)):
        raise BadInput(f"{CONTROL_COLUMNS}: {fault}.")
    findings = consume(console, RowChecks(dataset, rules, RunSettings()).check())
    dataset.exclude(findings.bad)
    if notice := findings.notice(dataset, rules.family):
        dataset.warn(notice)


def _given_columns(options: argparse.Namespace) -> dict[str, Any]:
    """Return the columns that options name, by request field."""
    given = {field: name for field in COLUMN_FIELDS if (name := getattr(options, field)) is not None}
    controls = given.pop("control_image_column", [])
    if len(controls) > 1:
        return given | {CONTROL_COLUMNS: controls}
    return given | {"control_image_column": controls[0]} if controls else given


def _guessed_columns(options: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return guesses for the fields that no option names; no more control columns than a named base model takes."""
    most = min(find_family(options.base_model).max_controls, MOST_CONTROLS) if options.base_model else MOST_CONTROLS
    guess = guess_columns(options.data, most)
    return {field: found for field, found in guess.items() if not _single([field]) <= _single(given)}


def _single(fields: Iterable[str]) -> set[str]:
    """Fields with the name of a single control column in place of that of several."""
    return {"control_image_column" if field == CONTROL_COLUMNS else field for field in fields}


def _listed(found: str | list[str]) -> str:
    return found if isinstance(found, str) else ", ".join(found)


def inspect(options: argparse.Namespace) -> int:
    """Run `inspect DATA.parquet`."""
    options.data = resolve_resource(options.data)
    columns = parquet_columns(options.data)
    given = _given_columns(options)
    guessed = _guessed_columns(options, given)
    chosen = guessed | given
    faults = column_faults(chosen, options.data)
    if faults:
        raise BadInput("\n".join(fault.removeprefix("training_params.") for fault in faults))
    report = None
    with Console() as console:
        if not options.json:
            width = max(map(len, columns), default=0)
            console.line(f"Columns of {options.data}:")
            for name, kind in columns.items():
                console.line(f"  {name:<{width}}  {kind}")
        if len(chosen) == len(COLUMN_FIELDS):
            if guessed and not options.json:
                console.line(
                    "Guessed from the names: " + ", ".join(f"{f} = {_listed(n)}" for f, n in sorted(guessed.items()))
                )
            dataset = load_dataset(
                console,
                Columns.from_fields(chosen),
                options.data,
                options.images_root,
                "skip",
                options.allow_no_control,
            )
            if options.base_model:
                _check_for_model(console, dataset, options.base_model)
            report = dataset.report
    if options.json:
        print(json.dumps({"columns": columns, "used": chosen, "report": report and report.to_dict()}, indent=2))
        return OK
    if report is None:
        missing = [option_of(field) for field in COLUMN_FIELDS if field not in _single(chosen)]
        print(f"To check the rows, name the columns that cannot be guessed: {', '.join(missing)}.")
        return OK
    print(printable(f"\n{report}\n\nFor the training_params of a request:"))
    print(printable(json.dumps(chosen, indent=2, ensure_ascii=False)))
    return OK
