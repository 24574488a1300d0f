"""Nodes that say what is loaded, and that have ComfyUI unload or load it again."""

from __future__ import annotations

import gc
from typing import Any

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from .trainer_access import trainer


class Loads(io.ComfyNode):
    """How often the trainer has loaded a transformer since this node was executed for the first time."""

    count = 0

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleLoads", inputs=[io.Image.Input("after")], is_output_node=True, not_idempotent=True
        )

    @classmethod
    def execute(cls, after: torch.Tensor) -> io.NodeOutput:
        model = trainer("models.edit_model").EditModel
        load = model.load_transformer
        if not hasattr(load, "counted"):

            def counted(*args: Any, **options: Any) -> Any:
                Loads.count += 1
                return load(*args, **options)

            counted.counted = True
            model.load_transformer = counted
        return io.NodeOutput(ui=ui.PreviewText(str(Loads.count)))


class Unload(io.ComfyNode):
    """The models that ComfyUI has loaded, which it then unloads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="OracleUnload", inputs=[io.Image.Input("after")], is_output_node=True)

    @classmethod
    def execute(cls, after: torch.Tensor) -> io.NodeOutput:
        names = [type(loaded.model.model).__name__ for loaded in memory.current_loaded_models]
        memory.unload_all_models()
        return io.NodeOutput(ui=ui.PreviewText(" ".join(names)))


class LiveBytes(io.ComfyNode):
    """The bytes of all tensors that Python objects of the server refer to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleLiveBytes", inputs=[io.Image.Input("after")], is_output_node=True, not_idempotent=True
        )

    @classmethod
    def execute(cls, after: torch.Tensor) -> io.NodeOutput:
        gc.collect()
        storages = {}
        for value in gc.get_objects():
            if issubclass(type(value), torch.Tensor) and value.device.type == "cpu":
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return io.NodeOutput(ui=ui.PreviewText(str(sum(storages.values()))))


class DeepClone(io.ComfyNode):
    """A MODEL whose base ComfyUI has opened once more, as it does for several GPUs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OracleDeepClone", inputs=[io.Model.Input("model")], outputs=[io.Model.Output("cloned")]
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        cloned = model.clone(force_deepcopy=True)
        assert cloned.model is not model.model
        return io.NodeOutput(cloned)
