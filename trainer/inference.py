"""Drawing of images: the diffusers pipelines' Euler loop over the components of a model, one step at a time."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .config.request import too_many_controls
from .data.resize import Size
from .errors import BadInput, RunFailed
from .events import Notice, Progress
from .families.info import Variant
from .memory.edit_session import EditSession
from .memory.model_parts import ModelComponents
from .models.captions import CaptionRules
from .models.edit_model import EditModel
from .models.family import Family
from .models.types import Grid, PackedLatents, TextConditioning, has_mask

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin


@dataclass(frozen=True, slots=True)
class DenoiseInputs:
    """The encoded inputs of one image."""

    controls: Sequence[PackedLatents]
    """Packed normalized latents of the control images, batch 1."""
    text: TextConditioning
    """Conditioning of the prompt: tensors with batch dimension 1 in any dtype, each `[1, ...]`."""
    negative_text: TextConditioning | None
    """Conditioning of the negative prompt, `[1, ...]` in any dtype; None for one pass a step."""
    size: Size
    """Size of the image in pixels."""


@dataclass(frozen=True, slots=True)
class DenoiseOptions:
    """Options of the sampler."""

    steps: int
    guidance: float
    """Weight of the prompt against the negative prompt; without one, the value of the guidance embedding."""
    seed: int
    """Seed of the noise."""

    @classmethod
    def for_variant(cls, variant: Variant, steps: int, guidance: float, seed: int) -> DenoiseOptions:
        """Return options in which 0 steps or guidance is replaced by the model's own."""
        return cls(steps or variant.sample_steps, guidance or variant.sample_guidance, seed)


def denoise(
    components: ModelComponents, inputs: DenoiseInputs, options: DenoiseOptions
) -> Generator[Progress, None, torch.Tensor]:
    """Yield Progress after every sampler step; return normalized latents `[1, C, h, w]` in the compute dtype.

    The noise is drawn on the CPU in the compute dtype, as the family's diffusers pipeline does, so that one seed gives
    one image in both.
    """
    family, placement = components.model.family, components.placement()
    device, dtype = components.device, components.dtype
    transformer, scheduler = components.transformer(), components.model.load_scheduler()
    grid = Grid(inputs.size.height // family.patch, inputs.size.width // family.patch)
    controls = [PackedLatents(control.tokens.to(device, dtype), control.grid) for control in inputs.controls]
    texts = [place(text, device, dtype) for text in (inputs.text, inputs.negative_text) if text is not None]
    channels = cast("ModelMixin", transformer).config["in_channels"]
    tokens = family.pack(_noise(family, channels, grid, options.seed, device, dtype)).tokens
    timesteps, sigmas = _set_timesteps(scheduler, family, options.steps, tokens.shape[1], device)

    def predict(step: int, text: TextConditioning) -> torch.Tensor:
        sigma = sigmas[step : step + 1]
        return family.predict(transformer, PackedLatents(tokens, grid), controls, text, sigma, options.guidance)

    passes = [partial(predict, step, text) for step in range(len(timesteps)) for text in texts]
    modulation = iter(placement.precompute(passes))
    for step, timestep in enumerate(timesteps):
        velocities = []
        with torch.no_grad():
            for text in texts:
                with placement.forward(next(modulation), masked=has_mask(text)), components.autocast():
                    velocities.append(predict(step, text))
            velocity = velocities[0]
            if len(velocities) > 1:
                velocity = family.combine_guidance(velocities[0], velocities[1], options.guidance)
            # diffusers annotates the tensors as FloatTensor.
            tokens = scheduler.step(velocity, timestep, tokens, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        yield Progress(phase="sampling", done=step + 1, total=options.steps)
    return family.unpack(PackedLatents(tokens, grid))


def _noise(
    family: Family, channels: int, grid: Grid, seed: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return noise `[1, C, h, w]` in the shape of latents, for tokens of `channels` values, drawn on the CPU."""
    side = family.patch // family.latent_step
    shape = (1, channels // side**2, side * grid.height, side * grid.width)
    return randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(seed), device=device, dtype=dtype)


def _set_timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler, family: Family, steps: int, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set the noise levels, shifted by the number of image tokens, as the diffusers pipelines do.

    Returns timesteps `[steps]` and sigmas `[steps + 1]`, float32.
    """
    shift = family.shift(scheduler.config, tokens, steps)
    if steps == 1:
        # diffusers would stretch the only level, 1, by 0 / 0.
        scheduler.register_to_config(shift_terminal=None)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), device=device, mu=shift)
    scheduler.set_begin_index(0)
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas
    assert isinstance(timesteps, torch.Tensor)
    assert isinstance(sigmas, torch.Tensor)
    return timesteps, sigmas


def decode(components: ModelComponents, latents: torch.Tensor) -> Image.Image:
    """Decode normalized latents `[1, C, h, w]` of any floating dtype to an 8-bit RGB image of W x H pixels.

    Post-processing is that of the diffusers pipelines (`VaeImageProcessor.postprocess`). Raises RunFailed where a value
    is no finite number, which would become black without a word.
    """
    family = components.model.family
    codec = components.codec(latents[:, 0].numel() * family.latent_step**2)
    pixels = codec.decode(family.denormalize(latents))
    if not torch.isfinite(pixels).all():
        raise RunFailed(
            "The picture has values that are no finite numbers (NaN or infinity). Lower the strength of the LoRA or "
            "the guidance, or take another precision."
        )
    images = VaeImageProcessor.pt_to_numpy((pixels * 0.5 + 0.5).clamp(0, 1))
    return VaeImageProcessor.numpy_to_pil(images)[0]


def place(text: TextConditioning, device: torch.device | str, dtype: torch.dtype) -> TextConditioning:
    """Move conditioning `[B, ...]` to a device, its floating-point tensors in `dtype`; masks keep their dtype."""
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
        for name, tensor in text.items()
    }


def encode_prompt(
    components: ModelComponents,
    prompt: str,
    controls: Sequence[torch.Tensor],
    guidance: float,
    negative_prompt: str = "",
) -> tuple[TextConditioning, TextConditioning | None]:
    """Encode a prompt and, where guidance uses one, a negative prompt; each to `[1, ...]` in the encoder's dtype.

    `controls` are the control images as the text encoder sees them, each float32 `[1, 3, H, W]` in 0..1.
    """
    encoder = components.text_encoder()
    negative = components.model.family.negative_prompt(prompt, guidance)
    text = encoder.encode(prompt, controls)
    components.check_text(text)
    return text, None if negative is None else encoder.encode(negative_prompt or negative, controls)


@dataclass(frozen=True, slots=True)
class PreparedControl:
    """A control image as the model sees it."""

    pixels: torch.Tensor
    """The image that the codec encodes, float32 `[1, 3, H, W]` in 0..1."""
    seen: torch.Tensor
    """The image that the text encoder sees, float32 `[1, 3, H, W]` in 0..1."""


def prepare_control(family: Family, image: Image.Image, size: Size) -> PreparedControl:
    """Prepare a control image for an edit of this size."""
    original = Size(*image.size)
    own = family.control_size(original, size, "inference")
    pixels, text_size = family.prepare_control(image, own), family.text_control_size(original, own)
    seen = pixels if text_size == own else family.prepare_control(image, text_size)
    return PreparedControl(pixels, seen)


def _check_count(model: EditModel, images: Sequence[Image.Image]) -> None:
    """Raise BadInput for more control images than the model takes, or for none."""
    if not images:
        raise BadInput("image: is required but missing.")
    if fault := too_many_controls(model.base_model, len(images)):
        raise BadInput(f"image: {fault}.")


def _check(
    model: EditModel,
    rules: CaptionRules,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    size: Size,
) -> None:
    """Raise BadInput for an image or a prompt that the model cannot take."""
    controls = [model.family.control_size(Size(*image.size), size, "inference") for image in images]
    for number, (image, control) in enumerate(zip(images, controls, strict=True), 1):
        if fault := model.family.size_fault(control):
            name = "image" if len(images) == 1 else f"image {number}"
            raise BadInput(f"{name}: has {image.width} x {image.height} pixels: {fault}.")
    room = model.family.caption_room(size, controls)
    for name, prompt in zip(("prompt", "negative prompt"), prompts, strict=True):
        if fault := rules.fault(prompt, room):
            raise BadInput(f"{name}: {fault}.")


def edit(
    model: EditModel,
    image: Image.Image | Sequence[Image.Image],
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
    session: EditSession | None = None,
) -> Generator[Progress | Notice, None, Image.Image]:
    """Edit an RGB image, or several together, in the order in which the model sees them; yield Progress, and a Notice
    about unused parts of the LoRA; return the edited image.

    Steps and guidance of 0 are the model's own; without a size the image gets the one that the inference pipeline gives
    the control image, or one of them. `lora` is a file, or tensors of any dtype, `[rank, in]` and `[out, rank]`, in
    any known format. A `session` keeps what is loaded for the next edit; without one, a component of the model is on
    the device at a time, and nothing is kept. Raises BadInput for more images than the
    model takes and for a negative prompt that has no effect, and the errors of `EditModel.load_*`.
    """
    family = model.family
    options = DenoiseOptions.for_variant(family.variant, steps, guidance, seed)
    if negative_prompt and family.negative_prompt(prompt, options.guidance) is None:
        raise BadInput(
            f"negative prompt: {family.info.name} does not use one at guidance {options.guidance:g}; leave it empty."
        )
    images = [image] if isinstance(image, Image.Image) else list(image)
    _check_count(model, images)
    images = family.fit_controls(images)
    size = family.sample_size(size or family.edit_size([Size(*each.size) for each in images]))
    if lora is not None:
        model = model.with_adapter(lora, lora_strength)
    session, device = session or EditSession(keeps=False), torch.device(device)
    with session.editing(model, device):
        _check(model, session.rules(model), images, (prompt, negative_prompt), size)
        for note in session.notes(model):
            yield Notice(message=note)
        controls = [prepare_control(family, each, size) for each in images]
        return (yield from _draw(session, model, device, controls, (prompt, negative_prompt), size, options))


def _draw(
    session: EditSession,
    model: EditModel,
    device: torch.device,
    controls: Sequence[PreparedControl],
    prompts: tuple[str, str],
    size: Size,
    options: DenoiseOptions,
) -> Generator[Progress | Notice, None, Image.Image]:
    """Draw an edit by a prompt and a negative prompt with what the session has loaded, or loads."""
    family, components = model.family, session.components(model, device, len(controls))
    yield Progress(phase="loading", done=0, total=3, note="text encoder")
    seen = [control.seen for control in controls]
    text, negative_text = encode_prompt(components, prompts[0], seen, options.guidance, prompts[1])
    session.rest("text_encoder")
    yield Progress(phase="loading", done=1, total=3, note="VAE")
    packed = [family.pack(family.encode(components.codec(), control.pixels)) for control in controls]
    yield Progress(phase="loading", done=2, total=3, note="transformer")
    components.transformer()
    yield Progress(phase="loading", done=3, total=3)
    latents = yield from denoise(components, DenoiseInputs(packed, text, negative_text, size), options)
    session.rest("transformer")
    edited = decode(components, latents)
    yield from components.notices()
    return edited
