"""`demo`: teach each tiny model an edit that it has never seen, and show the result."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..config.request import FineTuneRequest, parse_request
from ..config.settings import RunSettings
from ..data.load_request import load_request
from ..errors import OK
from ..events import Progress, drain
from ..files import atomic_write, write_text
from ..tiny.requests import make_request
from ..tiny.shapes import EditPair, make_pairs, write_parquet
from .console import Console
from .contact_sheet import Panel, draw_contact_sheet
from .runner import Stopped, check_folder, consume, edit_command, load_model, run_training
from .settings_options import read_settings

if TYPE_CHECKING:
    from PIL import Image

    from ..models.edit_model import EditModel


LESSONS = {
    "tiny/flux-kontext": "frame",
    "tiny/qwen-image-edit": "frame",
    "tiny/qwen-image-edit-plus": "join",
    "tiny/flux2-klein": "join",
}
"""The edit that each base model is taught, one of `shapes.TAUGHT_EDITS` and `shapes.TAUGHT_TWO_PICTURE_EDITS`, which no
base model was trained on."""

TRAINING_PAIRS, TRAINING_SEED = 320, 1

HELD_OUT_PAIRS, HELD_OUT_SEED = 32, 2

SHOWN_PAIRS = 6

SETTINGS = {"sample_steps": 10, "lr_scheduler": "cosine", "warmup_steps": 20, "cache_text_embeddings": True}
"""Run settings of the demo's trainings."""

TRAINING = {
    "batch_size": 16,
    "steps": 320,
    "learning_rate": 0.008,
    "sample_every": 160,
    "sample_width": 64,
    "sample_height": 64,
}
"""Training parameters of the demo, chosen for a clear result in a few minutes on two CPU cores."""

STEPS_FACTOR = {"tiny/flux2-klein": 1.5}
"""Factor of the steps for a model that learns its edit more slowly than the others."""


def demo(options: argparse.Namespace) -> int:
    """Run `demo`: train, evaluate, write `samples.png`, and print the scores as JSON in the last line."""
    from ..tracking.trackers import open_trackers

    settings = read_settings(options, SETTINGS)
    folder: Path = options.out
    check_folder(folder)
    panels, scores, commands = [], {}, []
    with Console() as console:
        console.line(
            "Four tiny models, with the architectures of FLUX.1 Kontext, Qwen-Image-Edit, Qwen-Image-Edit-2511 and\n"
            "FLUX.2 [klein], are each taught an edit that they have never seen, from a few hundred examples; those of\n"
            "the last two combine two images. Then they edit images that they were not trained on. No GPU and no\n"
            "download are needed.\n"
            f"Everything goes to {folder.resolve()}"
        )
        for number, (base_model, edit) in enumerate(LESSONS.items(), 1):
            pairs = list(make_pairs([edit], HELD_OUT_SEED, HELD_OUT_PAIRS))
            console.line(f'\n[{number}/{len(LESSONS)}] Teaching {base_model} to "{pairs[0].caption}"')
            request, parquet = _request(folder, base_model, edit)
            run_dir = folder / base_model.rpartition("/")[2]
            trackers = open_trackers(settings)
            finished = run_training(
                console, request, parquet, settings, run_dir, None, {}, options.command_line, trackers=trackers
            )
            if isinstance(finished, Stopped):
                return finished.exit_code
            assert finished.weights is not None
            console.line(f"Editing {HELD_OUT_PAIRS} images that were not trained on, without and with the LoRA ...")
            edited = consume(console, _evaluate(base_model, finished.weights, pairs, settings))
            scores[base_model] = score = _scores(pairs, edited)
            panels.append(_panel(base_model, pairs, edited, score))
            commands.append(edit_command(base_model, finished.weights, images=len(pairs[0].controls)))
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
    own = {
        "steps": round(TRAINING["steps"] * STEPS_FACTOR.get(base_model, 1)),
        "samples": [{"ctrl_img_url": "", "prompt": caption}],
    }
    request = make_request(base_model, parquet, TRAINING | own)
    path = folder / f"{base_model.rpartition('/')[2]}.json"
    write_text(path, parse_request(request).to_json() + "\n")
    return load_request(path)


def _evaluate(
    base_model: str, lora: Path, pairs: Sequence[EditPair], settings: RunSettings
) -> Generator[Progress, None, dict[str, list[Image.Image]]]:
    """Return the edited images of the pairs by the names of their scores: `before` without the LoRA, `after` with it,
    and `swapped` with it and the next pair's image. Of two images each is swapped alone, as `swapped_1` and
    `swapped_2`."""
    model = load_model(base_model, {}, settings.conditioning)
    trained = model.with_adapter(lora)
    before = yield from _edited(model, pairs, settings)
    after = yield from _edited(trained, pairs, settings)
    edited = {"before": before, "after": after}
    if pairs[0].control_2 is None:
        return edited | {"swapped": [*after[1:], after[0]]}
    for number, field in enumerate(("control", "control_2"), 1):
        others = [*pairs[1:], pairs[0]]
        swapped = [pair._replace(**{field: getattr(other, field)}) for pair, other in zip(pairs, others, strict=True)]
        edited[f"swapped_{number}"] = yield from _edited(trained, swapped, settings)
    return edited


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
    controls = [[prepare_control(family, image, size) for image in pair.controls] for pair in pairs]
    latents = [
        [family.pack(family.encode(components.codec(), own.pixels)) for own in prepared] for prepared in controls
    ]
    edited = []
    for number, (pair, prepared, packed) in enumerate(zip(pairs, controls, latents, strict=True)):
        options = DenoiseOptions.for_variant(
            family.variant, settings.sample_steps, settings.sample_guidance, settings.sample_seed + number
        )
        seen = [control.seen for control in prepared]
        text, negative_text = encode_prompt(components, pair.caption, seen, options.guidance)
        inputs = DenoiseInputs(packed, text, negative_text, size)
        edited.append(decode(components, drain(denoise(components, inputs, options))))
        yield Progress(phase="sampling", done=number + 1, total=len(pairs), note="held-out images")
    return edited


def _panel(
    base_model: str, pairs: Sequence[EditPair], edited: Mapping[str, Sequence[Image.Image]], score: dict[str, float]
) -> Panel:
    controls = ["control"] if pairs[0].control_2 is None else ["control 1", "control 2"]
    results = zip(pairs[:SHOWN_PAIRS], edited["before"], edited["after"], strict=False)
    caption = (
        f'taught "{pairs[0].caption}": {score["psnr_before"]:.1f} dB before, {score["psnr_after"]:.1f} dB after, '
        f"over {len(pairs)} held-out pairs"
    )
    return Panel(
        title=base_model,
        caption=caption,
        columns=[*controls, "before", "after", "target"],
        rows=[[*pair.controls, before, after, pair.target] for pair, before, after in results],
    )


def _scores(pairs: Sequence[EditPair], edited: Mapping[str, Sequence[Image.Image]]) -> dict[str, float]:
    """Return the mean PSNR in dB over the pairs: of the edited images, and of the unedited control images (copy)."""
    candidates = {**edited, "copy": [pair.control for pair in pairs]}
    return {
        f"psnr_{name}": round(
            float(np.mean([psnr(image, pair.target) for image, pair in zip(images, pairs, strict=True)])), 2
        )
        for name, images in candidates.items()
    }


def psnr(image: Image.Image, target: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB images of one size in dB: 10 log10(1 / mse), values in 0..1."""
    difference = (np.asarray(image, np.float64) - np.asarray(target, np.float64)) / 255
    return 10 * math.log10(1 / max(float(np.mean(difference**2)), 1e-10))
