"""What a transformer is given: watched in our edit and in ComfyUI's own edit graph, and compared."""

from __future__ import annotations

import json
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from .comfy_models import load_model
from .reduced_models import FAMILIES, reduced_clip, reduced_vae
from .trainer_access import nodes, trainer

EditModel = io.Custom("EDIT_MODEL")
WATCHED = {
    ("diffusers", "FluxTransformer2DModel"): {
        "x_embedder": "tokens",
        "context_embedder": "text",
        "time_text_embed": "pooled",
        "pos_embed": "positions",
    },
    ("diffusers", "Flux2Transformer2DModel"): {
        "x_embedder": "tokens",
        "context_embedder": "text",
        "pos_embed": "positions",
    },
    ("comfy", "Flux"): {"img_in": "tokens", "txt_in": "text", "vector_in": "pooled", "pe_embedder": "positions"},
    ("diffusers", "QwenImageTransformer2DModel"): {
        "img_in": "tokens",
        "txt_norm": "text",
        "time_text_embed.time_proj": "times",
        "pos_embed": "positions",
    },
    ("comfy", "QwenImageTransformer2DModel"): {
        "img_in": "tokens",
        "txt_norm": "text",
        "time_text_embed.time_proj": "times",
        "pe_embedder": "positions",
    },
}
"""By package and class of the transformer: its submodules, and what is their last positional argument."""


class Watcher:
    """While it watches, every forward pass of a transformer adds what its submodules are given."""

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, Any]]] = {"diffusers": [], "comfy": []}
        self._places: dict[int, tuple[torch.nn.Module, str, str]] = {}
        self._handles: list[Any] = []

    def start(self) -> None:
        self.stop()
        self.seen = {side: [] for side in self.seen}
        hooks = torch.nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after),
        ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._places = [], {}

    def _before(self, module: torch.nn.Module, args: tuple) -> None:
        side = type(module).__module__.partition(".")[0]
        if parts := WATCHED.get((side, type(module).__name__)):
            self.seen[side].append({})
            modules = dict(module.named_modules())
            found = {name: modules[name] for name in parts if name in modules}  # FLUX.2 has no `vector_in`
            self._places |= {id(part): (part, side, parts[name]) for name, part in found.items()}
        elif place := self._places.get(id(module)):
            _, side, what = place
            seen = self.seen[side][-1]
            # FLUX.2 asks for the image's positions, then for the text's, which come first.
            seen[what] = torch.cat([args[-1], seen[what]]) if what == "positions" and what in seen else args[-1]

    def _after(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        place = self._places.get(id(module))
        if place and place[2] == "positions":
            self.seen[place[1]][-1]["rotations"] = output


WATCHER = Watcher()


class Watch(io.ComfyNode):
    """Begins to watch; what comes after takes its CLIP from here."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleWatch",
            inputs=[io.Clip.Input("clip"), io.String.Input("run")],
            outputs=[io.Clip.Output("clip")],
        )

    @classmethod
    def execute(cls, clip: Any, run: str) -> io.NodeOutput:
        WATCHER.start()
        return io.NodeOutput(clip)


class Seen(io.ComfyNode):
    """Ends it, and compares what was seen on both sides, pass by pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("ours"), io.Latent.Input("theirs")]
        return io.Schema(node_id="OracleSeen", inputs=inputs, is_output_node=True)

    @classmethod
    def execute(cls, ours: torch.Tensor, theirs: dict) -> io.NodeOutput:
        WATCHER.stop()
        passes = [sorted(WATCHER.seen[side], key=lambda seen: seen["text"].shape[1]) for side in ("diffusers", "comfy")]
        report = [_compared(*pair) for pair in zip(*passes, strict=True)]
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


def _compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = {
        what: (ours[what] - theirs[what]).abs().max().item()
        for what in ("tokens", "text", "pooled", "times")
        if what in ours and ours[what].shape == theirs[what].shape
    }
    report["shapes"] = [
        [list(side[what].shape) for side in (ours, theirs)] for what in ("tokens", "text", "pooled") if what in ours
    ]
    if "times" in ours:
        report["timesteps"] = ours["times"].numel()
    ids, rotations = theirs["positions"][0], theirs["rotations"].reshape(ids_length(theirs), -1, 2, 2)
    if isinstance(ours["positions"], torch.Tensor):
        report["same_ids"] = torch.equal(ours["positions"].float(), ids.float())
        return report
    positions = trainer("models.comfyui_parity")
    images = ours["positions"][0]
    text = positions.text_positions(images[0], ours["text"].shape[1])
    own = torch.cat([text, *(positions.image_positions(grid, index) for index, grid in enumerate(images))])
    report["same_ids"] = own.shape == ids.shape and torch.equal(own.float(), ids.float())
    turned = torch.cat(ours["rotations"][::-1])
    effective = torch.stack([turned.real, turned.imag], dim=-1)
    report["rotations"] = (effective - rotations[..., 0]).abs().max().item()
    return report


def ids_length(seen: dict[str, Any]) -> int:
    return seen["positions"].shape[1]


class FileModel(io.ComfyNode):
    """ComfyUI's MODEL with the weights of a single file, whatever its size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [EditModel.Input("model")]
        return io.Schema(node_id="OracleFileModel", inputs=inputs, outputs=[io.Model.Output("model")])

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        transformer = model.load_transformer("cpu", torch.float32)
        config = dict(transformer.config) | {"_class_name": type(transformer).__name__}
        return io.NodeOutput(load_model(config, transformer.state_dict()))


class Fingerprints(io.ComfyNode):
    """The fingerprints of reduced CLIPs and VAEs, patched and not."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="OracleFingerprints", inputs=[], is_output_node=True)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        report = {}
        for family in FAMILIES:
            for kind, make in (("clip", lambda f, seed: reduced_clip(f, 64, seed)), ("vae", reduced_vae)):
                first, again, other = make(family, 0), make(family, 0), make(family, 1)
                prints = {"first": first.patcher, "again": again.patcher, "other weights": other.patcher}
                patched = first.patcher.clone()
                name, weight = max(patched.model.named_parameters(), key=lambda item: item[1].numel())
                patched.add_patches({name: ("diff", (torch.full_like(weight, 0.1),))}, 0.5)
                prints["patched"] = patched
                report[f"{family} {kind}"] = {key: fingerprint_of(value) for key, value in prints.items()}
                comfy.model_management.load_models_gpu([patched], force_full_load=True)
                report[f"{family} {kind}"] |= {
                    "patched and loaded": fingerprint_of(patched),
                    "first, while the patched one is loaded": fingerprint_of(first.patcher),
                }
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(report)))


def fingerprint_of(patcher: Any) -> str:
    return nodes("ports").fingerprint_weights(patcher)
