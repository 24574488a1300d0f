"""Drawing images: the pipelines' Euler loop over the parts of a model, one step at a time."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .config.settings import RunSettings
from .data.resize import Size
from .device import query_device
from .errors import BadInput
from .events import Notice, Progress
from .lora.adapter import left_out
from .memory.model_parts import ModelComponents
from .memory.placement import Placement
from .memory.planner import drawing_plan
from .models.edit_model import EditModel
from .models.family import Family
from .models.types import Grid, ImageCodec, PackedLatents, TextConditioning


def denoise(
    family: Family,
    transformer: torch.nn.Module,
    scheduler: FlowMatchEulerDiscreteScheduler,
    controls: Sequence[PackedLatents],
    text: TextConditioning,
    negative_text: TextConditioning | None,
    size: Size,
    steps: int,
    guidance: float,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype,
    placement: Placement | None = None,
) -> Generator[Progress, None, torch.Tensor]:
    """Yield Progress after every sampler step; return normalized latents [1, C, size.height/8, size.width/8].

    `controls` are packed normalized latents, batch 1. With `negative_text` every step has a second pass and
    `guidance` combines the two; else `guidance` feeds the guidance embedding. The noise is drawn on the CPU from
    `seed` in `dtype`: the same seed gives the image that the family's pipeline gives. `placement` is the
    transformer's, where it has one.
    """
    grid = Grid(size.height // family.patch, size.width // family.patch)
    channels = controls[0].tokens.shape[-1] // 4
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = randn_tensor(
        (1, channels, 2 * grid.height, 2 * grid.width), generator=generator, device=torch.device(device), dtype=dtype
    )
    tokens = family.pack(noise).tokens
    controls = [PackedLatents(control.tokens.to(device, dtype), control.grid) for control in controls]
    text = place(text, device, dtype)
    negative_text = place(negative_text, device, dtype) if negative_text is not None else None

    config = scheduler.config
    shift = calculate_shift(
        tokens.shape[1], config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=shift)
    scheduler.set_begin_index(0)
    texts = [text] if negative_text is None else [text, negative_text]

    def predict(step: int, text: TextConditioning) -> torch.Tensor:
        sigma = scheduler.sigmas[step : step + 1]
        return family.predict(transformer, PackedLatents(tokens, grid), controls, text, sigma, guidance)

    passes = [partial(predict, step, each) for step in range(len(scheduler.timesteps)) for each in texts]
    ahead = iter(placement.precompute(passes) if placement is not None else [None] * len(passes))
    for step, timestep in enumerate(scheduler.timesteps):
        velocities = []
        with torch.no_grad():
            for each in texts:
                with placement.forward(next(ahead)) if placement is not None else nullcontext():
                    velocities.append(predict(step, each))
            velocity = velocities[0]
            if negative_text is not None:
                velocity = family.combine_guidance(*velocities, guidance)
            tokens = scheduler.step(velocity, timestep, tokens, return_dict=False)[0]
        yield Progress(phase="sampling", done=step + 1, total=steps)
    return family.unpack(PackedLatents(tokens, grid))


def decode(family: Family, codec: ImageCodec, latents: torch.Tensor) -> Image.Image:
    """Normalized latents [1, C, h, w] to an 8-bit RGB image, as the pipelines' postprocessing makes it."""
    return VaeImageProcessor().postprocess(codec.decode(family.denormalize(latents)), output_type="pil")[0]


def place(text: TextConditioning, device: torch.device | str, dtype: torch.dtype) -> TextConditioning:
    """The conditioning on a device; its floating-point tensors, not its masks, in `dtype`."""
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
        for name, tensor in text.items()
    }


def edit(
    model: EditModel,
    image: Image.Image,
    prompt: str,
    *,
    negative_prompt: str = "",
    seed: int = 42,
    steps: int = 0,
    guidance: float = 0.0,
    size: Size | None = None,
    lora: Path | Mapping[str, torch.Tensor] | None = None,
    lora_strength: float = 1.0,
    device: torch.device | str = "cpu",
) -> Generator[Progress | Notice, None, Image.Image]:
    """Edit one RGB image; yield Progress, and a Warning of what of the LoRA is not used; return the edited image.

    Steps, guidance and size of 0 or None are the family's own: the size is the one that the pipeline's policy gives
    the control. One part of the model is on the device at a time. Raises BadInput for a negative prompt that the
    family, or the guidance, has no use for, and what `EditModel.load_*` raises.
    """
    family = model.family
    steps, guidance = steps or family.variant.sample_steps, guidance or family.variant.sample_guidance
    negative = family.negative_prompt(prompt, guidance)
    if negative_prompt and negative is None:
        raise BadInput(f"negative prompt: {family.name} does not use one at guidance {guidance:g}; leave it empty.")
    size = family.sample_size(size or family.target_size(Size(*image.size), family.variant.resolution))
    control = family.prepare_control(image, family.control_size(Size(*image.size), size, "inference"))
    if lora is not None:
        model = model.with_adapter(lora, lora_strength)
    if model.adapter is not None and (note := left_out(model.adapter)):
        yield Notice(message=note)
    device = torch.device(device)
    components = ModelComponents(model, device, drawing_plan(model, RunSettings(), query_device(device)))

    yield Progress(phase="loading", done=0, total=3, note="text encoder")
    encoder = components.text_encoder()
    text = encoder.encode(prompt, [control])
    negative_text = None if negative is None else encoder.encode(negative_prompt or negative, [control])
    del encoder
    components.drop("text_encoder")
    yield Progress(phase="loading", done=1, total=3, note="VAE")
    packed = family.pack(family.encode(components.codec(), control))
    yield Progress(phase="loading", done=2, total=3, note="transformer")
    transformer = components.transformer()
    yield Progress(phase="loading", done=3, total=3)
    latents = yield from denoise(
        family,
        transformer,
        model.load_scheduler(),
        [packed],
        text,
        negative_text,
        size,
        steps,
        guidance,
        seed,
        device,
        components.dtype,
        components.placement(),
    )
    return decode(family, components.codec(), latents)
