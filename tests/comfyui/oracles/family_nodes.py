"""A made-up model family, registered while the node runs, as the pack's own nodes see it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from .reduced_models import FAMILIES, reduced_clip, reduced_vae
from .trainer_access import nodes, trainer

NAME = "example/Trio-Edit"


class ThirdFamily(io.ComfyNode):
    """What the pack offers, and what it says to reduced CLIPs and VAEs of the other families."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="OracleThirdFamily", inputs=[], is_output_node=True)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        registered = trainer("families.registry").FAMILIES
        info = made_up()
        registered.append(info)
        try:
            report = {"own": connected(info, "flux-kontext", "qwen-image-edit"), "texts": texts()}
            for other in FAMILIES:
                report[other] = connected(replaced_clip(info, "another.module.Clip"), other, other)
                report[f"{other} only vae"] = connected(replaced_clip(info, class_path(other)), other, other)
        finally:
            registered.remove(info)
        report["afterwards"] = texts()
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


def made_up() -> Any:
    """A record that expects Flux's CLIP and Qwen-Image's VAE, which no real family does."""
    records = trainer("families.records")
    flux, qwen = records.FLUX_KONTEXT, records.QWEN_IMAGE_EDIT
    ports = replace(
        flux.comfyui,
        clip_loader='CLIPLoader with trio, type "trio"',
        vae_loader="VAELoader with trio_vae.safetensors",
        vae_class=qwen.comfyui.vae_class,
        latent_dims=qwen.comfyui.latent_dims,
    )
    variant = replace(flux.variants[0], name=NAME, download_gb=3)
    return replace(flux, name="trio", title="Trio", variants=(variant,), uses_negative_prompt=True, comfyui=ports)


def replaced_clip(info: Any, path: str) -> Any:
    return replace(info, comfyui=replace(info.comfyui, clip_class=path, latent_channels=48))


def class_path(family: str) -> str:
    cls = type(reduced_clip(family, 64, 0).cond_stage_model)
    return f"{cls.__module__}.{cls.__qualname__}"


def connected(info: Any, clip: str, vae: str) -> str:
    """The message of a refusal, or the conditioning's tensors."""
    try:
        ports = nodes("ports").connect(info, reduced_clip(clip, 64, 0), reduced_vae(vae, 0))
    except ValueError as error:
        return str(error)
    return " ".join(ports.text_encoder.encode("a frame", []))


def texts() -> dict[str, Any]:
    """The base models that are offered, and the help of the negative prompt."""
    base_model = nodes("base_model").BaseModel.define_schema()
    edit = nodes("edit").EditImage.define_schema()
    return {
        "base_models": next(i.options for i in base_model.inputs if i.id == "base_model"),
        "negative_prompt": next(i.tooltip for i in edit.inputs if i.id == "negative_prompt"),
    }
