"""A base model as ComfyUI's own MODEL: opened by ComfyUI's own loader from the files of an EDIT_MODEL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd
import comfy.utils
import torch

from ..trainer.errors import BadInput
from ..trainer.families.registry import find_variant
from .folders import file_state

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..trainer.models.edit_model import EditModel


class NativeBase:
    """The MODEL of one base without a LoRA, opened once for all that is made of it."""

    def __init__(self) -> None:
        self._source: object = None
        """State of the files that the MODEL was opened from."""
        self._patcher: ModelPatcher | None = None

    def open(self, model: EditModel, make_room: Callable[[int], None]) -> ModelPatcher:
        """Return the MODEL of the transformer that `model` names; another one, or a file that has changed on the disk,
        takes its place. `make_room` is called with the bytes that are to be read into host memory.

        Raises BadInput for files that this ComfyUI cannot open, and what `EditModel.transformer_files` raises.
        """
        files = model.transformer_files()
        marker = _missing_marker(model, files)
        source = marker, [file_state(file) for file in files]
        if self._patcher is None or source != self._source:
            self.release()
            _check_kinds(files)
            make_room(sum(file.stat().st_size for file in files))
            self._patcher, self._source = _opened(model, files, marker), source
        return self._patcher

    def release(self) -> None:
        """Forget the MODEL: ComfyUI frees it unless a graph still holds it."""
        self._patcher, self._source = None, None


def _check_kinds(files: list[Path]) -> None:
    """Raise BadInput for GGUF files."""
    for file in files:
        if file.suffix.lower() == ".gguf":
            raise BadInput(
                f"{file.name}: ComfyUI's own loader does not open GGUF files. Load it with the loader of the pack that "
                "reads them (ComfyUI-GGUF), and connect that MODEL and the lora to Load LoRA Model; or choose a "
                ".safetensors file in Load Edit Base Model."
            )


def _opened(model: EditModel, files: list[Path], marker: str) -> ModelPatcher:
    """Open the files by ComfyUI's loader. Raises BadInput if that cannot."""
    try:
        if len(files) == 1 and not marker:
            return comfy.sd.load_diffusion_model(str(files[0]))
        return _load_tensors(files, marker)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # ComfyUI's loader fails in as many ways as there are formats that it does not know.
        raise BadInput(_refusal(model, files, error)) from error


def _load_tensors(files: list[Path], marker: str, **options: Any) -> ModelPatcher:
    """Open the tensors of all files together, with an empty tensor of the name `marker` unless that is empty."""
    tensors: dict[str, torch.Tensor] = {marker: torch.tensor([])} if marker else {}
    metadata: dict[str, str] = {}
    for file in files:
        read, described = comfy.utils.load_torch_file(str(file), return_metadata=True)
        tensors |= read
        metadata |= described or {}
    patcher = comfy.sd.load_diffusion_model_state_dict(tensors, metadata=metadata, **options)
    if patcher is None:
        raise ValueError("the model type is not detected")
    # ComfyUI opens a second copy by this where it needs one, as for several GPUs.
    patcher.cached_patcher_init = (_load_tensors, (files, marker))
    return patcher


def _missing_marker(model: EditModel, files: list[Path]) -> str:
    """Name of the tensor by which ComfyUI tells the variant, if it has one and the files lack it; else empty."""
    from ..trainer.models.transformer import open_transformer

    marker = model.family.variant.marker
    if not marker:
        return ""
    sources = [open_transformer(file) for file in files]
    if any(f"{source.prefix}{marker}" in source.file.tensors for source in sources):
        return ""
    return sources[0].prefix + marker


def _refusal(model: EditModel, files: list[Path], error: Exception) -> str:
    lines = str(error).splitlines()[:2] or [type(error).__name__]
    reason = " ".join(line.strip() for line in lines).rstrip(".:")
    said = f"{model.base_model}: ComfyUI's own loader does not open {files[0].name} ({reason}). Edit Image does."
    if find_variant(model.base_model).embedded:
        return f"{said} ComfyUI knows this kind of model at its full size only: choose one of full size for a MODEL."
    return f"{said} For a MODEL choose a transformer that Load Diffusion Model opens too, or update ComfyUI."
