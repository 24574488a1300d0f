"""Models that Edit Image keeps loaded, registered with ComfyUI's model management."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher

from .native_base import NativeBase

if TYPE_CHECKING:
    from ..trainer.memory.edit_session import EditSession
    from ..trainer.models.edit_model import EditModel


class EditTrainerModel(torch.nn.Module):
    """Stands for a kept model in ComfyUI's list of loaded models, and in its log."""


class KeptModel:
    """The components that edits with one EDIT_MODEL, and with its trained copies, have loaded, and the base of their
    native MODELs.

    It lives as long as ComfyUI keeps that output, as the host copy of a model from ComfyUI's own loaders does: with
    `--cache-none` until the end of the prompt.
    """

    def __init__(self) -> None:
        from ..trainer.memory.edit_session import EditSession

        self.session = EditSession()
        self.patcher = SessionPatcher(self.session)
        self.native = NativeBase()
        KEPT.add(self)
        weakref.finalize(self, _release, self.session).atexit = False


class SessionPatcher(ModelPatcher):
    """Shows ComfyUI what a session has on the device, and moves it to host memory when ComfyUI needs the room.

    The session itself brings components back, each when it is used.
    """

    def __init__(self, session: EditSession) -> None:
        super().__init__(EditTrainerModel(), memory.get_torch_device(), memory.unet_offload_device())
        self.session = session

    def model_size(self) -> int:
        """Return the bytes on the device: more is loaded only when it is used."""
        return self.session.device_bytes

    def loaded_size(self) -> int:
        """Return the bytes on the device."""
        return self.session.device_bytes

    def current_loaded_device(self) -> torch.device:
        """Return the device."""
        return self.load_device

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Load nothing: the session does, when it is used."""
        return 0

    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> int:
        """Unload nothing, so that ComfyUI takes all of it off."""
        return 0

    def detach(self, unpatch_all: bool = True) -> Any:
        """Move all of it to host memory, or leave it if ComfyUI's own models stay on the device too."""
        if unpatch_all and self.load_device != self.offload_device:
            with torch.inference_mode(False):  # tensors made in it could be used only there
                self.session.to_host()
        return self.model


def kept_of(model: EditModel) -> KeptModel:
    """The components kept for a model; for a model without any, new ones that live as long as the caller holds them."""
    return model.kept if isinstance(model.kept, KeptModel) else KeptModel()


def release_all() -> None:
    """Free all that is kept, on the device and in host memory."""
    for kept in list(KEPT):
        kept.session.release()
        kept.native.release()


def make_host_room(size: int) -> None:
    """Free what is kept, one model after the other, until host memory has room for that many bytes."""
    from ..trainer.memory.edit_session import has_host_room

    for kept in list(KEPT):
        if has_host_room(size):
            return
        kept.session.release()
        kept.native.release()


def _release(session: EditSession) -> None:
    session.release()
    gc.collect()  # a transformer and the hooks of its blocks refer to each other
    memory.soft_empty_cache()


KEPT: weakref.WeakSet[KeptModel] = weakref.WeakSet()
"""All that is kept."""
