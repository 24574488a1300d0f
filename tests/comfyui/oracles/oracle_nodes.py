"""Nodes that compare what ComfyUI makes of our files with what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import ComfyExtension, io, ui
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file

from .comfy_models import FULL_SIZE, empty_model, load_model, merged, native, read_transformer
from .conditioning_nodes import FileModel, Fingerprints, Seen, Watch
from .family_nodes import ThirdFamily
from .file_nodes import FullSizeLayout, SingleFile
from .memory_nodes import DeepClone, LiveBytes, Loads, Unload
from .reduced_models import ReducedClip, ReducedVae, VaeFile
from .several_family import SeveralFamily
from .several_nodes import FixedNoise, SeveralControls, edit_outputs, to_pil, to_tensor
from .trainer_access import trainer

EditModel = io.Custom("EDIT_MODEL")
PREFIX = "diffusion_model."


def folder_of(model: Any) -> Path:
    return model.folder / "transformer"


class ComfyModel(io.ComfyNode):
    """ComfyUI's MODEL with an embedded base's weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleComfyModel", inputs=[EditModel.Input("model")], outputs=[io.Model.Output("model")]
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(load_model(*read_transformer(folder_of(model))))


class Converted(io.ComfyNode):
    """A LoRA file as it is, and what we make of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleConverted",
            inputs=[EditModel.Input("model"), io.String.Input("file")],
            outputs=[io.LoraModel.Output("as_it_is"), io.LoraModel.Output("converted")],
        )

    @classmethod
    def execute(cls, model: Any, file: str) -> io.NodeOutput:
        converted = trainer("lora.adapter").read_lora(Path(file), model.family, model.empty_transformer())
        return io.NodeOutput(load_file(file), converted)


class Patches(io.ComfyNode):
    """Every weight that LoraModelLoader has patched, against base + B·A."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [EditModel.Input("base"), io.Model.Input("patched"), io.LoraModel.Input("lora")]
        return io.Schema(node_id="OraclePatches", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, base: Any, patched: ModelPatcher, lora: dict[str, torch.Tensor]) -> io.NodeOutput:
        config, weights = read_transformer(folder_of(base))
        meant = native(config, merged(weights, lora))
        before = native(config, weights)
        changed = {name for name in meant if not torch.equal(meant[name], before[name])}
        found = {PREFIX + name: tensor for name, tensor in meant.items()}
        worst = 0.0
        for key, patches in patched.patches.items():
            base_weight = dict(patched.model.named_parameters())[key].detach().float().clone()
            got = comfy.lora.calculate_weight(patches, base_weight, key)
            error = torch.linalg.vector_norm(got - found[key]) / torch.linalg.vector_norm(found[key])
            worst = max(worst, error.item())
        report = {
            "worst": worst,
            "patched": len(patched.patches),
            "changed": len(changed),
            "same_keys": {PREFIX + name for name in changed} == set(patched.patches),
            "patches": sum(map(len, patched.patches.values())),
            "modules": len(lora) // 2,
        }
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


class FullSizeKeys(io.ComfyNode):
    """Whether every key of a LoRA file finds a weight of its shape in ComfyUI's full-size model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Combo.Input("kind", options=list(FULL_SIZE)), io.String.Input("file")]
        return io.Schema(node_id="OracleFullSizeKeys", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, kind: str, file: str) -> io.NodeOutput:
        model = empty_model(FULL_SIZE[kind] | {"_class_name": kind}, torch.device("meta"))
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        lora = load_file(file)
        key_map = comfy.lora.model_lora_keys_unet(model, {})
        unknown, misfits = [], []
        for name in lora:
            if not name.endswith(".lora_A.weight"):
                continue
            target = key_map.get(name.removesuffix(".lora_A.weight"))
            if target is None:
                unknown.append(name)
                continue
            key, cut = (target, None) if isinstance(target, str) else target[:2]
            wanted = list(shapes[key])
            if cut is not None:
                wanted[cut[0]] = cut[2]
            if wanted != [lora[name.replace("_A.", "_B.")].shape[0], lora[name].shape[1]]:
                misfits.append(name)
        loaded = len(comfy.lora.load_lora(dict(lora), key_map))
        report = {"unknown": unknown, "misfits": misfits, "loaded": loaded, "modules": len(lora) // 2}
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


class OurEdit(io.ComfyNode):
    """What our edit gives to its sampler and gets from it, as ComfyUI's sampler takes it and gives it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleOurEdit",
            inputs=[
                EditModel.Input("edit_model"),
                io.Model.Input("model"),
                io.Image.Input("image"),
                io.String.Input("prompt"),
                io.Int.Input("seed"),
                io.Int.Input("steps"),
            ],
            outputs=edit_outputs(),
        )

    @classmethod
    def execute(
        cls, edit_model: Any, model: ModelPatcher, image: torch.Tensor, prompt: str, seed: int, steps: int
    ) -> io.NodeOutput:
        inference, events = trainer("inference"), trainer("events")
        seen: dict[str, Any] = {}
        denoise = inference.denoise

        def watched(components, inputs, options):
            scheduler = components.model.load_scheduler()
            with patch.object(type(components.model), "load_scheduler", lambda model: scheduler):
                latents = yield from denoise(components, inputs, options)
            seen.update(family=components.model.family, controls=inputs.controls, text=inputs.text)
            seen.update(guidance=options.guidance, latents=latents, sigmas=scheduler.sigmas)
            return latents

        inference.denoise = watched
        try:
            drawn = events.drain(inference.edit(edit_model, to_pil(image), prompt, seed=seed, steps=steps))
        finally:
            inference.denoise = denoise
        noise = randn_tensor(seen["latents"].shape, generator=torch.Generator("cpu").manual_seed(seed))
        control = seen["family"].unpack(seen["controls"][0])
        frames = (
            (lambda latents: latents.unsqueeze(2)) if seen["family"].info.name == "qwen-image-edit" else lambda x: x
        )
        to_comfy = model.model.process_latent_out
        extra = {"reference_latents": [to_comfy(frames(control))], "guidance": seen["guidance"]}
        if "pooled_prompt_embeds" in seen["text"]:
            extra["pooled_output"] = seen["text"]["pooled_prompt_embeds"]
        ours = to_comfy(frames(seen["latents"]))
        return io.NodeOutput(
            FixedNoise(frames(noise)),
            ", ".join(f"{sigma:.9f}" for sigma in seen["sigmas"].tolist()),
            [[seen["text"]["prompt_embeds"], extra]],
            {"samples": torch.zeros_like(ours)},
            {"samples": ours},
            to_tensor(drawn),
        )


class Difference(io.ComfyNode):
    """The relative L2 distance of two latents, and of two images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        latents = [io.Latent.Input(name) for name in ("ours", "theirs", "untrained")]
        images = [io.Image.Input(name) for name in ("oracle_image", "node_image")]
        return io.Schema(node_id="OracleDifference", inputs=[*latents, *images], is_output_node=True)

    @classmethod
    def execute(cls, oracle_image: torch.Tensor, node_image: torch.Tensor, **latents: dict) -> io.NodeOutput:
        ours, theirs, untrained = (latents[name]["samples"] for name in ("ours", "theirs", "untrained"))
        norm = torch.linalg.vector_norm
        report = {
            "latents": (norm(ours - theirs) / norm(ours)).item(),
            "lora": (norm(ours - untrained) / norm(ours)).item(),
            "images": (oracle_image - node_image).abs().max().item(),
        }
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


class Oracles(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ComfyModel,
            Converted,
            Patches,
            FullSizeKeys,
            OurEdit,
            Difference,
            FullSizeLayout,
            SingleFile,
            ReducedClip,
            ReducedVae,
            VaeFile,
            Watch,
            Seen,
            FileModel,
            Fingerprints,
            SeveralFamily,
            ThirdFamily,
            SeveralControls,
            Unload,
            Loads,
            LiveBytes,
            DeepClone,
        ]
