"""`inspect`: the columns of a dataset, the sizes of its images and its unusable rows."""

from __future__ import annotations

import argparse
import json

from ..config.request import COLUMN_FIELDS, Columns
from ..config.settings import RunSettings
from ..data.columns import guess_columns
from ..data.dataset import EditDataset
from ..data.parquet import column_faults, parquet_columns
from ..errors import OK, BadInput, printable
from .console import Console
from .parser import option_of
from .runner import consume, load_dataset, load_model


def _check_for_model(console: Console, dataset: EditDataset, base_model: str) -> None:
    """Add the rows that the model cannot take to the dataset's report."""
    from ..encoding.row_checks import RowChecks
    from ..models.captions import CaptionRules

    rules = CaptionRules(load_model(base_model, {}))
    findings = consume(console, RowChecks(dataset, rules, RunSettings()).check())
    dataset.exclude(findings.bad)
    if notice := findings.notice(dataset, rules.family):
        dataset.warn(notice)


def inspect(options: argparse.Namespace) -> int:
    """Run `inspect DATA.parquet`."""
    columns = parquet_columns(options.data)
    given = {field: getattr(options, field) for field in COLUMN_FIELDS}
    guessed = {field: name for field, name in guess_columns(options.data).items() if given[field] is None}
    chosen = guessed | {field: name for field, name in given.items() if name is not None}
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
                console.line("Guessed from the names: " + ", ".join(f"{f} = {n}" for f, n in sorted(guessed.items())))
            dataset = load_dataset(console, Columns.from_fields(chosen), options.data, options.images_root, "skip")
            if options.base_model:
                _check_for_model(console, dataset, options.base_model)
            report = dataset.report
    if options.json:
        print(json.dumps({"columns": columns, "used": chosen, "report": report and report.to_dict()}, indent=2))
        return OK
    if report is None:
        missing = [option_of(field) for field in COLUMN_FIELDS if field not in chosen]
        print(f"To check the rows, name the columns that cannot be guessed: {', '.join(missing)}.")
        return OK
    print(printable(f"\n{report}\n\nFor the training_params of a request:"))
    print(printable(json.dumps(chosen, indent=2, ensure_ascii=False)))
    return OK
