"""Several processes that train one model together: their number, their device, and what they tell each other.

`torchrun` and `accelerate launch` start the processes and say in the environment which is which (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Tensors travel by nccl between CUDA devices, else by gloo; everything else goes
through `heartbeat.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from ..device import DeviceInfo, default_device, query_device
from ..errors import BadInput, outcome
from ..events import RunControl
from .fsdp import is_sharded
from .heartbeat import Heartbeat, RankLost

if TYPE_CHECKING:
    from torch.distributed import Store


COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""No waiting is done in collectives of tensors, so this only ends what hangs beyond all other means."""


class SingleProcess:
    """One process alone: there is nobody to wait for."""

    rank, world_size = 0, 1
    sharded = False
    """Each process holds but a part of the weights, and all must compute together."""

    def __init__(self, control: RunControl | None = None) -> None:
        self.local_control = control or RunControl()
        """What this process was asked to do."""
        self.shared_control = self.local_control
        """What all processes know to be asked for; it changes where they meet."""
        self.terminated = False
        """The launcher has told this process to end."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks to the person."""
        return self.rank == 0

    def device(self) -> torch.device:
        """The device of this process."""
        return default_device()

    def query_device(self, device: torch.device) -> DeviceInfo:
        """The card that a plan for all processes is made for."""
        return query_device(device)

    def all_gather_object(self, value: Any = None) -> list[Any]:
        """Wait for all processes; what each has brought (JSON), by rank. Raises RankLost."""
        return [value]

    def sync_controls(self) -> None:
        """Wait for all processes, and agree on whether to stop."""

    def check(self) -> None:
        """Raises RankLost when another process is gone."""

    def reduce_step(self, loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        """Sum loss and gradients over the processes, and agree on what was asked for meanwhile; the summed loss."""
        return loss

    def broadcast_from_main(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the values that the main one has."""

    @property
    def saves(self) -> bool:
        """Whether this process is the one that saves: the first that is left."""
        return True

    def rescue_with(self, save: Callable[[], str]) -> None:
        """How to save when another process is lost and the main thread is stuck; returns what to tell the person."""

    @contextmanager
    def losses_named(self) -> Iterator[None]:
        """Inside, an error that follows from the loss of another process becomes RankLost."""
        yield

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process goes through first, so that the others find what it has put on the disk."""
        yield


class MultiProcess(SingleProcess):
    """This process as one of several."""

    def __init__(self, control: RunControl | None = None) -> None:
        """Returns when all processes are there. Raises BadInput where torch cannot do it."""
        super().__init__(control)
        self.shared_control = RunControl()
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self._save: Callable[[], str] | None = None
        if not torch.distributed.is_available():
            raise BadInput("This build of torch cannot train with several processes; start a single one.")
        in_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._keeps_store = self.rank == 0 and not in_launcher
        self._stores: list[Store] = []
        keeper = "the launcher" if in_launcher else "rank 0"
        signal.signal(signal.SIGTERM, self._terminate)
        self._heart = Heartbeat(
            self._connect,
            self.rank,
            self.world_size,
            keeper,
            lambda: self.local_control.stopping,
            self.local_control.stop,
            self._rescue,
        )

    def _connect(self) -> Store:
        from torch.distributed import PrefixStore, TCPStore

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        keep = self._keeps_store and not self._stores
        self._stores.append(TCPStore(host, port, is_master=keep, wait_for_workers=False))
        return PrefixStore(f"edit_trainer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", self._stores[-1])

    def open(self) -> None:
        """Choose the device and connect for tensors. Raises BadInput when there are more processes than devices."""
        from torch.distributed import init_process_group, is_nccl_available

        self._device = default_device()
        backend = "gloo"
        if self._device.type == "cuda":
            count = torch.cuda.device_count()
            if self._local_rank >= count:
                raise BadInput(f"More processes than devices: this machine has {count}. Lower --nproc-per-node.")
            torch.cuda.set_device(self._local_rank)
            self._device = torch.device("cuda", self._local_rank)
            if is_nccl_available():
                # Who is lost is noticed by the heartbeat, which saves; nccl's own watchdog would end the process.
                os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
                backend = "cpu:gloo,cuda:nccl"
        self.all_gather_object()
        init_process_group(
            backend, store=self._connect(), rank=self.rank, world_size=self.world_size, timeout=COLLECTIVE_TIMEOUT
        )

    def device(self) -> torch.device:
        return self._device

    def query_device(self, device: torch.device) -> DeviceInfo:
        """One that does what all can, with the least memory. Processes of one machine share its host memory; where
        weights are shared out, all cards together are taken for one."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        device_info = query_device(device)
        own = device_info.free // here if device_info.is_cpu else device_info.free
        all_cards = zip(
            *self.all_gather_object(
                (own, device_info.host // here, device_info.bf16, sorted(device_info.fast_precisions))
            ),
            strict=True,
        )
        free, host, bf16, fast = map(list, all_cards)
        return replace(
            device_info,
            free=min(free) * (self.world_size if self.sharded else 1),
            host=min(host),
            bf16=all(bf16),
            fast_precisions=device_info.fast_precisions.intersection(*fast),
        )

    def all_gather_object(self, value: Any = None) -> list[Any]:
        return self._heart.all_gather_object(value)

    def sync_controls(self) -> None:
        if any(self.all_gather_object(self.local_control.stopping)):
            self.shared_control.stop()

    def check(self) -> None:
        self._heart.check()

    def reduce_step(self, loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        shares = self.all_gather_object(
            [loss.item(), self.local_control.stopping, self.local_control.take_sample_request()]
        )
        losses, stops, samples = zip(*shares, strict=True)
        if any(stops):
            self.shared_control.stop()
        if any(samples):
            self.shared_control.sample_now()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for gradient in filter(is_sharded, gradients):
            gradient.mul_(self.world_size)  # fully_shard has averaged it
        self._flat([gradient for gradient in gradients if not is_sharded(gradient)], torch.distributed.all_reduce)
        return torch.tensor(sum(losses), device=loss.device)

    def broadcast_from_main(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.all_gather_object()
        tensors = [parameter.data for parameter in parameters if not is_sharded(parameter)]
        self._flat(tensors, lambda flat: torch.distributed.broadcast(flat, 0))

    def _flat(self, tensors: list[torch.Tensor], collective: Callable[[torch.Tensor], Any]) -> None:
        """Run a collective on all tensors (one device, one number format) as one, in place."""
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        carried = flat if flat.device.type in ("cuda", "cpu") else flat.cpu()
        collective(carried)
        for tensor, values in zip(tensors, carried.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view_as(tensor))

    @property
    def saves(self) -> bool:
        return self._heart.is_first_alive

    def rescue_with(self, save: Callable[[], str]) -> None:
        self._save = save

    @contextmanager
    def losses_named(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
                self._heart.wait_for_loss()
            raise

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.main:
            self.all_gather_object()
        yield
        if self.main:
            self.all_gather_object()

    # the end

    def leave(self) -> None:
        """End, all done or stopped."""
        self._heart.end()
        if self._keeps_store:
            self._heart.wait_for_ends()
        self._heart.close()
        torch.distributed.destroy_process_group()

    def fail(self, error: BaseException) -> None:
        """Tell the others and, unless a rank before this one has the same to tell, the person; then exit. Nothing is
        cleaned up: what waits for a lost process would never end."""
        message, code = outcome(error)
        if isinstance(error, RankLost):
            code = error.code
        silent = isinstance(error, KeyboardInterrupt) and not self.main
        if self.rank:
            self._heart.end(message, code)
            silent = silent or self._heart.is_said(message)
        if not silent:
            print(message, file=sys.stderr, flush=True)
        if not self.rank:
            self._heart.end(message, code)
            self._heart.wait_for_ends()
        sys.stdout.flush()
        os._exit(code)

    def _rescue(self, loss: RankLost) -> None:
        """In the heartbeat's thread: what `fail` does, and the saving that the main thread cannot do."""
        more = ""
        if self.saves and self._save is not None:
            try:
                more = f"\n{self._save()}"
            except Exception as error:
                more = f"\nNothing could be saved: {error}"
        self.fail(RankLost(f"{loss}{more}", loss.code))

    def _terminate(self, number: int, frame: Any) -> None:
        self.terminated = self._heart.terminated = True
        self.local_control.stop()


@contextmanager
def launched_processes() -> Iterator[SingleProcess]:
    """The processes that a launcher has started; this one alone where there was none. An error that leaves a group's
    context ends the process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SingleProcess()
        return
    group = MultiProcess()
    try:
        group.open()
        yield group
    except BaseException as error:
        group.fail(error)
    group.leave()
