"""An edit with several controls by the trainer's own parts, and what ComfyUI's sampler takes and gives for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from comfy_api.latest import io
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .trainer_access import trainer

EditModel = io.Custom("EDIT_MODEL")
CPU = torch.device("cpu")
NAMES = ("image1", "image2", "image3")


class FixedNoise:
    """A NOISE that is given."""

    seed = 0

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        return self.noise


def edit_outputs() -> list[Any]:
    """What ComfyUI's sampler takes for one of our edits, and the latents and the image that ours gives."""
    return [
        io.Noise.Output("noise"),
        io.String.Output("sigmas"),
        io.Conditioning.Output("positive"),
        io.Latent.Output("empty"),
        io.Latent.Output("ours"),
        io.Image.Output("image"),
    ]


class SeveralControls(io.ComfyNode):
    """Our edit, and noise, noise levels, conditioning and an empty latent for ComfyUI's sampler. The model is one for
    images of side x side pixels; the image gets the shape of the last control at an area of target_side squared."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleSeveralControls",
            inputs=[
                EditModel.Input("edit_model"),
                io.String.Input("prompt"),
                io.Int.Input("seed"),
                io.Int.Input("steps"),
                io.Float.Input("guidance"),
                io.Int.Input("side"),
                io.Int.Input("target_side"),
                *(io.Image.Input(name, optional=True) for name in NAMES),
            ],
            outputs=edit_outputs(),
        )

    @classmethod
    def execute(
        cls,
        edit_model: Any,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        side: int,
        target_side: int,
        **images: torch.Tensor,
    ) -> io.NodeOutput:
        pictures = [to_pil(images[name]) for name in NAMES if name in images]
        inference, family = trainer("inference"), edit_model.family
        family = type(family)(replace(family.variant, resolution=side), family.vae_config)
        Size = trainer("data.resize").Size
        sizes = [Size(*picture.size) for picture in pictures]
        size = family.sample_size(family.target_size(sizes[-1], target_side))
        made = [family.control_size(own, size, "inference") for own in sizes]
        seen = [family.text_control_size(*pair) for pair in zip(sizes, made, strict=True)]
        shown = [family.prepare_control(*pair) for pair in zip(pictures, seen, strict=True)]
        components = components_of(edit_model)
        encoder, negative = components.text_encoder(), family.negative_prompt(prompt, guidance)
        text = encoder.encode(prompt, shown)
        negative_text = None if negative is None else encoder.encode(negative, shown)
        prepared = [family.prepare_control(*pair) for pair in zip(pictures, made, strict=True)]
        controls = [family.pack(family.encode(components.codec(), image)) for image in prepared]
        inputs = inference.DenoiseInputs(controls, text, negative_text, size)
        scheduler = edit_model.load_scheduler()
        if steps == 1:
            scheduler.register_to_config(shift_terminal=None)  # with it, a single step has no noise level
        with patch.object(type(edit_model), "load_scheduler", lambda model: scheduler), torch.inference_mode(False):
            drawing = inference.denoise(components, inputs, inference.DenoiseOptions(steps, guidance, seed))
            latents = trainer("events").drain(drawing)
        edited = inference.decode(components, latents)
        references = [to_comfy(family, family.unpack(control)) for control in controls]
        ours = to_comfy(family, latents)
        noise = framed(family, randn_tensor(latents.shape, generator=torch.Generator("cpu").manual_seed(seed)))
        return io.NodeOutput(
            FixedNoise(noise),
            ", ".join(f"{sigma:.9f}" for sigma in scheduler.sigmas.tolist()),
            [[text["prompt_embeds"], {"reference_latents": references}]],
            {"samples": torch.zeros_like(ours)},
            {"samples": ours},
            to_tensor(edited),
        )


def components_of(model: Any) -> Any:
    """The components of a model, all in float32 on the CPU."""
    plan = trainer("memory.plan").Plan(precision="fp32", dtype=torch.float32, offload="none")
    return trainer("memory.model_parts").ModelComponents(model, CPU, plan)


def to_comfy(family: Any, latents: torch.Tensor) -> torch.Tensor:
    """Normalized latents as ComfyUI's samplers give them: those of the VAE, one frame each for a video VAE."""
    import comfy.latent_formats

    formats = comfy.latent_formats
    made = formats.Wan21() if family.info.comfyui.latent_dims == 3 else formats.Flux2()
    return made.process_out(framed(family, latents))


def framed(family: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents with a frame axis where the family's VAE is one for videos."""
    return latents.unsqueeze(2) if family.info.comfyui.latent_dims == 3 else latents


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())


def to_tensor(image: Image.Image) -> torch.Tensor:
    values = torch.tensor(list(image.getdata()), dtype=torch.float32)
    return values.reshape(1, image.height, image.width, 3) / 255
