"""Weights sharded over the processes of a run with torch's FSDP2: each process holds a part of every tensor."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch

from ..modules import blocks_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Tell whether this process holds only a shard of the tensor (any shape and dtype)."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def shard_transformer(
    transformer: torch.nn.Module, device: torch.device, replicated: Iterable[torch.nn.Parameter] = ()
) -> None:
    """Shard the weights over all processes (collective).

    A block's weights are gathered for its computation and freed after it; gradients are averaged over the processes.
    Replaces the parameters: references to the old ones go stale. Those in `replicated` stay as they are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    ignored = set(replicated) or None
    for block in blocks_of(transformer):
        fully_shard(block, mesh=mesh, ignored_params=ignored)
    # The blocks return views, and no code here changes those in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # By default the root keeps its gathered weights, and sampling after a step would use outdated ones.
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True, ignored_params=ignored)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor of any shape and dtype (collective); one that is not sharded is returned as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def full_tensors_on_main(tensors: Mapping[str, torch.Tensor], is_main: bool) -> dict[str, torch.Tensor]:
    """Gather tensors one at a time (collective) and return them on the main process, an empty dict on the others.

    Tensors have any shape and dtype. Gathered ones are in host memory; those that were not sharded are returned as they
    are.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if is_main:
            gathered[name] = full.cpu() if is_sharded(tensor) else full
    return gathered


def shard_like(values: Mapping[str, torch.Tensor], owners: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return this process's shards of full tensors of any shape and dtype (collective).

    Each value is sharded as the tensor of its name in `owners` is if both have one shape, else returned as it is.
    """
    shards = {}
    for name, value in values.items():
        owner = owners.get(name)
        if owner is not None and is_sharded(owner) and owner.shape == value.shape:
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)
        shards[name] = value
    return shards
