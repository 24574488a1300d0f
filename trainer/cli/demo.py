"""`demo`: teach each tiny model an edit that it has never seen, and show the result."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config.request import FineTuneRequest, parse_request
from ..config.settings import RunSettings
from ..data.load_request import load_request
from ..errors import OK
from ..events import Progress, drain
from ..files import atomic_write, write_text
from ..tiny.shapes import EditPair, make_pairs, write_parquet
from .console import Console
from .contact_sheet import Panel, draw_contact_sheet
from .parser import read_settings
from .runner import Stopped, check_folder, consume, edit_command, load_model, run_training

if TYPE_CHECKING:
    from PIL import Image

    from ..models.edit_model import EditModel


LESSONS = {"tiny/flux-kontext": "frame", "tiny/qwen-image-edit": "frame"}
"""The edit that each base model is taught, one of `shapes.TAUGHT_EDITS`, which no base model was trained on."""

TRAINING_PAIRS, TRAINING_SEED = 320, 1

HELD_OUT_PAIRS, HELD_OUT_SEED = 32, 2

SHOWN_PAIRS = 6

SETTINGS = {"sample_steps": 10, "lr_scheduler": "cosine", "warmup_steps": 20}
"""Run settings of the demo's trainings."""

TRAINING = {
    "batch_size": 16,
    "cache_text_embeddings": True,
    "steps": 320,
    "learning_rate": 0.008,
    "sample_every": 160,
    "sample_width": 64,
    "sample_height": 64,
}
"""Training parameters of the demo, chosen for a clear result in a few minutes on two CPU cores."""


def demo(options: argparse.Namespace) -> int:
    """Run `demo`: train, evaluate, write `samples.png`, and print the scores as JSON in the last line."""
    settings = read_settings(options, SETTINGS)
    folder: Path = options.out
    check_folder(folder)
    panels, scores, commands = [], {}, []
    with Console() as console:
        console.line(
            "Two tiny models, with the architectures of FLUX.1 Kontext and Qwen-Image-Edit, are each taught an edit\n"
            "that they have never seen, from a few hundred pairs of images. Then they edit images that they were not\n"
            f"trained on. No GPU and no download are needed. Everything goes to {folder.resolve()}"
        )
        for number, (base_model, edit) in enumerate(LESSONS.items(), 1):
            pairs = list(make_pairs([edit], HELD_OUT_SEED, HELD_OUT_PAIRS))
            console.line(f'\n[{number}/{len(LESSONS)}] Teaching {base_model} to "{pairs[0].caption}"')
            request, parquet = _request(folder, base_model, edit)
            run_dir = folder / base_model.rpartition("/")[2]
            finished = run_training(console, request, parquet, settings, run_dir, None, {}, options.command_line)
            if isinstance(finished, Stopped):
                return finished.exit_code
            assert finished.weights is not None
            console.line(f"Editing {HELD_OUT_PAIRS} images that were not trained on, without and with the LoRA ...")
            before, after = consume(console, _evaluate(base_model, finished.weights, pairs, settings))
            scores[base_model] = score = _scores(pairs, before, after)
            panels.append(_panel(base_model, pairs, before, after, score))
            commands.append(edit_command(base_model, finished.weights))
        from ..training.sample_images import save_image

        save_image(folder / "samples.png", draw_contact_sheet(panels))
        console.line("\nDone. Each row of the contact sheet shows an image that was not trained on:")
        console.line(f"  {(folder / 'samples.png').resolve()}")
        console.line("\nThe LoRAs are in the run folders. To edit an image of your own:")
        for command in commands:
            console.line(f"  {command}")
        console.line("\nPSNR in dB against the true target (higher is closer):")
    print(json.dumps(scores))
    return OK


def _request(folder: Path, base_model: str, edit: str) -> tuple[FineTuneRequest, Path]:
    """Write the training pairs, unless they exist, and a request; then load the request as `train` does."""
    parquet = folder / "data" / f"{edit}.parquet"
    if not parquet.is_file():
        with atomic_write(parquet) as temporary:
            write_parquet(temporary, [edit], TRAINING_SEED, TRAINING_PAIRS)
    caption = next(iter(make_pairs([edit], TRAINING_SEED, 1))).caption
    request = {
        "resource": parquet.as_posix(),
        "base_model": base_model,
        "script_type": "image_editing",
        "training_params": {
            "caption_column": "caption",
            "control_image_column": "control",
            "image_column": "target",
            "samples": [{"ctrl_img_url": "", "prompt": caption}],
            **TRAINING,
        },
    }
    path = folder / f"{base_model.rpartition('/')[2]}.json"
    write_text(path, parse_request(request).to_json() + "\n")
    return load_request(path)


def _evaluate(
    base_model: str, lora: Path, pairs: Sequence[EditPair], settings: RunSettings
) -> Generator[Progress, None, tuple[list[Image.Image], list[Image.Image]]]:
    """Return the edited control images, without and with the LoRA."""
    model = load_model(base_model, {}, settings.conditioning)
    before = yield from _edited(model, pairs, settings)
    after = yield from _edited(model.with_adapter(lora), pairs, settings)
    return before, after


def _edited(
    model: EditModel, pairs: Sequence[EditPair], settings: RunSettings
) -> Generator[Progress, None, list[Image.Image]]:
    """Edit the pairs' control images by their captions, each from noise of its own."""
    from ..data.resize import Size
    from ..device import default_device, query_device
    from ..inference import DenoiseInputs, DenoiseOptions, decode, denoise, encode_prompt, prepare_control
    from ..memory.model_parts import ModelComponents
    from ..memory.planner import inference_plan

    device = default_device()
    components = ModelComponents(model, device, inference_plan(model, settings, query_device(device)))
    family = model.family
    size = family.target_size(Size(*pairs[0].target.size), family.variant.resolution)
    controls = [prepare_control(family, pair.control, size) for pair in pairs]
    latents = [family.pack(family.encode(components.codec(), control.pixels)) for control in controls]
    edited = []
    for number, (pair, control, packed) in enumerate(zip(pairs, controls, latents, strict=True)):
        options = DenoiseOptions.for_variant(
            family.variant, settings.sample_steps, settings.sample_guidance, settings.sample_seed + number
        )
        text, negative_text = encode_prompt(components, pair.caption, [control.seen], options.guidance)
        inputs = DenoiseInputs([packed], text, negative_text, size)
        edited.append(decode(components, drain(denoise(components, inputs, options))))
        yield Progress(phase="sampling", done=number + 1, total=len(pairs), note="held-out images")
    return edited


def _panel(
    base_model: str,
    pairs: Sequence[EditPair],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    score: dict[str, float],
) -> Panel:
    rows = [(p.control, b, a, p.target) for p, b, a in zip(pairs, before, after, strict=True)]
    caption = (
        f'taught "{pairs[0].caption}": {score["psnr_before"]:.1f} dB before, {score["psnr_after"]:.1f} dB after, '
        f"over {len(pairs)} held-out pairs"
    )
    return Panel(title=base_model, caption=caption, rows=rows[:SHOWN_PAIRS])


def _scores(pairs: Sequence[EditPair], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> dict[str, float]:
    """Return the mean PSNR in dB over the pairs: of the edits before and after, of the unedited control images (copy)
    and of another pair's edit (swapped)."""
    targets = [pair.target for pair in pairs]
    candidates = {
        "psnr_before": before,
        "psnr_after": after,
        "psnr_copy": [pair.control for pair in pairs],
        "psnr_swapped": [*after[1:], after[0]],
    }
    return {
        name: round(float(np.mean([psnr(a, b) for a, b in zip(images, targets, strict=True)])), 2)
        for name, images in candidates.items()
    }


def psnr(image: Image.Image, target: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB images of one size in dB: 10 log10(1 / mse), values in 0..1."""
    difference = (np.asarray(image, np.float64) - np.asarray(target, np.float64)) / 255
    return 10 * math.log10(1 / max(float(np.mean(difference**2)), 1e-10))
