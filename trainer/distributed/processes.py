"""The processes of a run: their number, their devices and the collectives between them.

`torchrun` and `accelerate launch` start the processes and describe them in the environment (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). When one fails, the launcher stops the others; with `--max-restarts` it starts
all of them again, and they resume from the last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..device import DeviceInfo, default_device, query_device
from ..errors import BadInput, RunFailed
from ..events import RunControl
from .fsdp import is_sharded

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


PROCESS_GROUP_TIMEOUT = timedelta(hours=2)
"""Longest wait of a collective for the other processes; a run that waits longer ends as hung.

The longest regular wait is for the main process to download a base model: 58 GB take 77 minutes at 100 Mbit/s. torch's
defaults (10 minutes for nccl, 30 for gloo) would end such a run.
"""


class SingleProcess:
    """A run in one process; base class of a run in several."""

    rank, world_size = 0, 1

    def __init__(self, control: RunControl | None = None) -> None:
        self.local_control = control or RunControl()
        """Requests made to this process."""
        self.shared_control = self.local_control
        """Requests that all processes have agreed on; changes in `sync_controls` and `reduce_step` alone."""

    @property
    def is_main(self) -> bool:
        """True in the process that writes the files and prints."""
        return self.rank == 0

    def device(self) -> torch.device:
        """Return the device of this process."""
        return default_device()

    def query_device(self, device: torch.device, sharded: bool = False) -> DeviceInfo:
        """Return the device that a plan for all processes is made for; `sharded` pools the memory of their devices."""
        return query_device(device)

    def barrier(self) -> None:
        """Wait for all processes."""

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every process's value (anything that can be pickled), ordered by rank."""
        return [value]

    def sync_controls(self) -> None:
        """Share the stop request of any process with all of them."""

    def reduce_step(self, loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        """Sum gradients in place and the loss (float32 scalar) over the processes, and share their requests.

        Returns the summed loss (float32 scalar).
        """
        return loss

    def broadcast_from_main(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Overwrite every process's parameters by the main process's."""

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Context that the main process runs before the others, so that they find its files."""
        yield


class MultiProcess(SingleProcess):
    """One of several processes that a launcher has started."""

    def __init__(self, control: RunControl | None = None) -> None:
        """Wait for all processes and create the process group.

        Raises BadInput when there are more processes than devices, or when torch was built without `distributed`.
        """
        super().__init__(control)
        self.shared_control = RunControl()
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if not dist.is_available():
            raise BadInput("This build of torch cannot train with several processes; start a single one.")
        self._device = _local_device(int(os.environ.get("LOCAL_RANK", self.rank)))
        on_nccl = self._device.type == "cuda" and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_nccl else "gloo",
            store=_store(),
            rank=self.rank,
            world_size=self.world_size,
            timeout=PROCESS_GROUP_TIMEOUT,
        )
        group = dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)
        self._cpu_group = group

    def device(self) -> torch.device:
        return self._device

    def query_device(self, device: torch.device, sharded: bool = False) -> DeviceInfo:
        """Return a device with the least memory and the common abilities of all processes' devices.

        Processes of one machine share its host memory.
        """
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        own = query_device(device)
        free = own.free // local_size if own.is_cpu else own.free
        infos: list[DeviceInfo] = self.all_gather_object(replace(own, free=free, host=own.host // local_size))
        return replace(
            own,
            free=min(info.free for info in infos) * (self.world_size if sharded else 1),
            host=min(info.host for info in infos),
            bf16=all(info.bf16 for info in infos),
            capability=min((info.capability for info in infos if info.capability), default=None),
            fast_precisions=frozenset.intersection(*(info.fast_precisions for info in infos)),
            preferred_precisions=frozenset.intersection(*(info.preferred_precisions for info in infos)),
            compiler=all(info.compiler for info in infos),
            expandable_segments=all(info.expandable_segments for info in infos),
            spills=any(info.spills for info in infos),
        )

    def barrier(self) -> None:
        dist.barrier(self._cpu_group)

    def all_gather_object(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._cpu_group)
        return values

    def sync_controls(self) -> None:
        if any(self.all_gather_object(self.local_control.stopping)):
            self.shared_control.stop()

    def reduce_step(self, loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        own = (loss.item(), self.local_control.stopping, self.local_control.take_sample_request())
        losses, stops, samples = zip(*self.all_gather_object(own), strict=True)
        if any(stops):
            self.shared_control.stop()
        if any(samples):
            self.shared_control.sample_now()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient in filter(is_sharded, gradients):
            gradient.mul_(self.world_size)  # fully_shard has averaged it
        _flat([gradient for gradient in gradients if not is_sharded(gradient)], dist.all_reduce)
        return torch.tensor(sum(losses), device=loss.device)

    def broadcast_from_main(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        tensors = [parameter.data for parameter in parameters if not is_sharded(parameter)]
        _flat(tensors, lambda flat: dist.broadcast(flat, 0))

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


def _store() -> Store:
    """Return the launcher's key-value store.

    torchrun keeps one store over all restarts, so that gloo would read the addresses of processes that have ended
    (https://github.com/pytorch/pytorch/issues/135712); hence a prefix for each start. Not on several machines: their
    launchers count restarts separately.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, world_size = next(rendezvous("env://", timeout=PROCESS_GROUP_TIMEOUT))
    if int(os.environ.get("LOCAL_WORLD_SIZE", 0)) != world_size:
        return store
    return PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _local_device(local_rank: int) -> torch.device:
    """Return the device of one process of this machine. Raises BadInput when there are too few."""
    device = default_device()
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise BadInput(f"More processes than devices: this machine has {count}. Lower --nproc-per-node.")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _flat(tensors: list[torch.Tensor], collective: Callable[[torch.Tensor], Any]) -> None:
    """Run one collective on all tensors (of one device and dtype) as a single flat tensor, in place."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    sent = flat if flat.device.type in ("cuda", "cpu") else flat.cpu()
    collective(sent)
    for tensor, values in zip(tensors, sent.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


@contextmanager
def launched_processes() -> Iterator[SingleProcess]:
    """Context with the processes that a launcher has started, or with a single one where there was no launcher.

    Raises RunFailed when the connection to another process breaks or a collective times out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SingleProcess()
        return
    try:
        yield MultiProcess()
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        raise RunFailed(
            f"Rank {rank} of {world_size} gets no answer from another process: it has failed, and then says why, or it "
            f"hangs. The same command resumes from the last checkpoint.\n({error})"
        ) from error
    dist.destroy_process_group()


def _is_connection_error(error: RuntimeError) -> bool:
    """Tell whether a collective has failed; gloo raises plain RuntimeErrors, which name its source files."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
