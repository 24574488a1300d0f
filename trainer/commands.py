"""What `train`, `plan`, `inspect` and `edit` do."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from .cli import model_options, option_of, read_settings
from .columns import guess_columns
from .driver import consume, edit_command, load_dataset, load_model, run_training
from .errors import BadInput
from .events import Warning
from .exits import INTERRUPTED, OK
from .request import load_request
from .resource import column_faults, parquet_columns
from .schema import COLUMN_FIELDS, parse_request, read_json_file
from .terminal import Terminal


def train(options: argparse.Namespace) -> int:
    """`train REQUEST.json`."""
    from .distributed import joined

    with joined() as ranks, Terminal(silent=not ranks.main) as terminal:
        settings = read_settings(options)
        request, parquet = load_request(options.request)
        model = model_options(options)
        run_dir = options.out or Path("runs") / options.request.stem
        finished = run_training(
            terminal, request, parquet, settings, run_dir, options.cache, model, options.command_line, ranks
        )
        if finished is None:
            return INTERRUPTED
        terminal.line(f"Done after {finished.step} steps: {finished.weights}")
        if request.training_params.use_lora:
            terminal.line(f"Use it:\n  {edit_command(request.base_model, finished.weights, model)}")
    return OK


def plan(options: argparse.Namespace) -> int:
    """`plan REQUEST.json`."""
    settings = read_settings(options)
    request = parse_request(read_json_file(options.request, "the request"))
    for name, amount in (("--vram", options.vram), ("--ram", options.ram)):
        if amount is not None and not 0 < amount < math.inf:
            raise BadInput(f"{name} {amount}: must be a positive number of GB")
    model = load_model(request.base_model, model_options(options), settings.conditioning)
    from .card import card_of, card_with
    from .memory import default_device
    from .planning import make_plan

    card = card_of(default_device()) if options.vram is None else card_with(options.vram, options.ram)
    if options.vram is None and options.ram is not None:
        card = replace(card, host=int(options.ram * 1e9))
    found = make_plan(model, request.training_params, settings, card)
    print(f"{request.base_model} in {card.free / 1e9:.1f} GB: {found.line()}")
    width = max(map(len, found.expected))
    for name, size in found.expected.items():
        print(f"  {name:<{width}}  {size / 1e9:7.2f} GB")
    print(f"  {'together':<{width}}  {found.bytes / 1e9:7.2f} GB")
    return OK


def inspect(options: argparse.Namespace) -> int:
    """`inspect DATA.parquet`."""
    columns = parquet_columns(options.data)
    given = {field: getattr(options, field) for field in COLUMN_FIELDS}
    guessed = {field: name for field, name in guess_columns(options.data).items() if given[field] is None}
    chosen = guessed | {field: name for field, name in given.items() if name is not None}
    faults = column_faults(chosen, options.data)
    if faults:
        raise BadInput("\n".join(fault.removeprefix("training_params.") for fault in faults))
    report = None
    with Terminal() as terminal:
        if not options.json:
            width = max(map(len, columns), default=0)
            terminal.line(f"Columns of {options.data}:")
            for name, kind in columns.items():
                terminal.line(f"  {name:<{width}}  {kind}")
        if len(chosen) == len(COLUMN_FIELDS):
            if guessed and not options.json:
                terminal.line("Guessed from the names: " + ", ".join(f"{f} = {n}" for f, n in sorted(guessed.items())))
            report = load_dataset(terminal, chosen, options.data, options.images_root, "skip").report
    if options.json:
        print(json.dumps({"columns": columns, "used": chosen, "report": report and report.to_dict()}, indent=2))
        return OK
    if report is None:
        missing = [option_of(field) for field in COLUMN_FIELDS if field not in chosen]
        print(f"To check the rows, name the columns that cannot be guessed: {', '.join(missing)}.")
        return OK
    print(f"\n{report}\n\nFor the training_params of a request:")
    print(json.dumps(chosen, indent=2, ensure_ascii=False))
    return OK


def edit(options: argparse.Namespace) -> int:
    """`edit`: one picture, one prompt, with or without a LoRA."""
    _check_numbers(options)
    if options.out.suffix.lower() != ".png":
        raise BadInput(f"--out {options.out}: the picture is written as PNG, so the name must end with .png.")
    from .downloads import Downloads
    from .images import load_control

    picture = load_control(str(options.image), None, Downloads())
    model = load_model(options.base_model, model_options(options))
    from .memory import default_device
    from .models.family import Size
    from .samples import save_image
    from .sampling import edit

    with Terminal() as terminal:
        for doubt in model.doubts():
            terminal.show(Warning(message=doubt))
        drawing = edit(
            model,
            picture,
            options.prompt,
            negative_prompt=options.negative_prompt,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            size=Size(options.width, options.height) if options.width else None,
            lora=options.lora,
            lora_strength=options.lora_strength,
            device=default_device(),
        )
        save_image(options.out, consume(terminal, drawing))
        terminal.line(f"Edited picture: {options.out}")
    return OK


def _check_numbers(options: argparse.Namespace) -> None:
    """Raises BadInput naming every number that `edit` cannot use."""
    faults = [
        f"--{name} {value}: must not be negative"
        for name in ("seed", "steps", "guidance", "width", "height")
        if not (value := getattr(options, name)) >= 0 or math.isinf(value)
    ]
    if not math.isfinite(options.lora_strength):
        faults.append(f"--lora-strength {options.lora_strength}: must be a finite number")
    if bool(options.width) != bool(options.height):
        faults.append("--width and --height: give both or neither")
    if options.lora_strength != 1 and not options.lora:
        faults.append("--lora-strength: there is no --lora")
    if faults:
        raise BadInput("\n".join(faults))
