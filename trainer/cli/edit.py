"""`edit`: one image or several, one prompt, with or without a LoRA."""

from __future__ import annotations

import argparse
import math

from ..errors import OK, BadInput
from ..events import Notice
from .console import Console
from .model_options import model_options
from .runner import consume, load_model


def edit(options: argparse.Namespace) -> int:
    """Run `edit`."""
    _check_numbers(options)
    if options.out.suffix.lower() != ".png":
        raise BadInput(f"--out {options.out}: the image is written as PNG, so the name must end in .png.")
    from ..data.downloads import Downloads
    from ..data.images import load_control

    downloads = Downloads()
    images = [load_control(str(image), None, downloads) for image in options.image]
    model = load_model(options.base_model, model_options(options))
    from ..data.resize import Size
    from ..device import default_device
    from ..inference import edit
    from ..training.sample_images import save_image

    with Console() as console:
        for warning in model.warnings():
            console.show(Notice(message=warning))
        editing = edit(
            model,
            images,
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
        save_image(options.out, consume(console, editing))
        console.line(f"Edited image: {options.out}")
    return OK


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise BadInput naming every invalid number."""
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
        faults.append("--lora-strength: needs --lora")
    if faults:
        raise BadInput("\n".join(faults))
