"""Weights that the processes of a run share out between them, each holding a part of every tensor (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch

from ..modules import blocks_of


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def shard_transformer(
    transformer: torch.nn.Module, device: torch.device, replicated: Iterable[torch.nn.Parameter] = ()
) -> None:
    """Share the weights out, all processes together. They are put together for a block's computation and let go of
    after it; gradients are averaged over the processes.

    Makes new parameters: who holds the old ones must ask for them again. Those of `replicated` stay as they are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    options = {"mesh": mesh} | ({"ignored_params": set(replicated)} if replicated else {})
    for block in blocks_of(transformer):
        fully_shard(block, **options)
    # The blocks return views, which nothing here changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # By default the root keeps what it has put together, and sampling would go on with old values after a step.
    fully_shard(transformer, reshard_after_forward=True, **options)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor put together from its parts, all processes together; one that is not shared out as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def full_tensors_on_main(tensors: Mapping[str, torch.Tensor], main: bool) -> dict[str, torch.Tensor]:
    """The tensors put together one after the other, all processes together, kept by the main process alone (in host
    memory, where they were shared out)."""
    kept = {}
    for name, tensor in tensors.items():
        together = full_tensor(tensor)
        if main:
            kept[name] = together.cpu() if is_sharded(tensor) else together
    return kept


def shard_like(values: Mapping[str, torch.Tensor], owners: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This process's parts of whole tensors, all processes together: each shared out as the tensor of its name in
    `owners` is, where the two have one shape; else whole."""
    shared = {}
    for name, value in values.items():
        owner = owners.get(name)
        if owner is not None and is_sharded(owner) and owner.shape == value.shape:
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)
        shared[name] = value
    return shared
