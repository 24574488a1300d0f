"""Runs that this process executes, as the page and the node show them."""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy.model_management import InterruptProcessingException
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..trainer.errors import printable
from ..trainer.events import (
    Checkpoint,
    Event,
    Finished,
    Notice,
    Planned,
    Progress,
    RunControl,
    Sample,
    Started,
    Step,
    Validation,
)
from ..trainer.training.checkpoint import checkpoint_steps
from ..trainer.training.run_folder import RunFolder
from ..trainer.training.run_log import lowest
from .folders import runs_folder
from .host import NodeDisplay, Pace, device_memory, progress_line
from .run_snapshot import LiveSnapshot
from .saved_runs import sample_entries, sample_entry, save_workflow, workflow_id

EVENT = "edit_trainer.run"
MAX_LIVE_RUNS = 32
"""Nodes whose last run stays in memory; a judgement: more than a graph has."""
MEMORY_SECONDS = 1.0
"""Seconds between two readings of the device's memory; a judgement."""
SPEED_STEPS = 20
"""Number of last steps whose mean duration is shown as the speed; a judgement."""


class LiveRun:
    """A run of one node. Turns training events into the page's events and the node's progress bar."""

    def __init__(self, node_id: str, run: str, plan: str, workflow: dict[str, Any] | None) -> None:
        """`workflow` is the graph in the page, saved with the run; None when no page queued it."""
        self._workflow = workflow
        self.display = NodeDisplay(node_id)
        self.control = RunControl()
        """Passed to `train`; the panel's buttons use it."""
        self.finished: Finished | None = None
        context = get_executing_context()
        self.snapshot = LiveSnapshot(
            id=uuid.uuid4().hex,
            node_id=node_id,
            prompt_id=context.prompt_id if context else "",
            run=run,
            state="running",
            workflow_id=workflow_id(workflow),
            plan=plan,
            phase="loading",
        )
        self._sent = self.snapshot.lengths()
        self._pace, self._memory_pace = Pace(), Pace(MEMORY_SECONDS)
        self._seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        LIVE_RUNS.add(self)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Context in which the run executes; reports its end to the page on exit.

        Raises InterruptProcessingException for a run that ended without weights, as Cancel does: the nodes after this
        one have nothing to work on yet.
        """
        snapshot = self.snapshot
        try:
            yield
            if self.finished is None or self.finished.weights is None:
                raise InterruptProcessingException
            snapshot.state = "stopped" if self.finished.stopped else "finished"
        except InterruptProcessingException:
            saved = checkpoint_steps(RunFolder(runs_folder() / snapshot.run).checkpoints)
            snapshot.checkpoints += [step for step in saved if step not in snapshot.checkpoints]
            snapshot.state, snapshot.status, snapshot.seconds_left = "stopped", "", None
            raise
        except BaseException as error:
            snapshot.state, snapshot.status = "failed", str(error)
            raise
        finally:
            self._send()

    def show(self, event: Event) -> None:
        """Add one event to the snapshot and send the snapshot when a message is due.

        Raises InterruptProcessingException when the run was asked to stop in a phase that takes long to end by itself.
        """
        snapshot = self.snapshot
        if isinstance(event, Progress):
            self._add_progress(event)
        elif isinstance(event, Planned):
            snapshot.plan += f": {event.line}"
        elif isinstance(event, Started):
            self._add_start(event)
        elif isinstance(event, Step):
            self._add_step(event)
        elif isinstance(event, Validation):
            self._add_validation(event)
        elif isinstance(event, Sample):
            snapshot.samples.append(sample_entry(event.step, event.index, event.prompt, event.path))
        elif isinstance(event, Notice):
            logging.warning("%s", printable(event.message))
            snapshot.warnings.append(event.message)
        elif isinstance(event, Checkpoint):
            if event.step not in snapshot.checkpoints:
                snapshot.checkpoints.append(event.step)
        elif isinstance(event, Finished):
            self._add_end(event)
        if self._memory_pace.due():
            snapshot.memory = device_memory()
        if self._pace.due():
            self._send(wait=False)
        if self.control.stopping and isinstance(event, Progress) and event.phase not in self._last_phases():
            raise InterruptProcessingException

    def _last_phases(self) -> tuple[str, ...]:
        """Phases that a run which was asked to stop ends by itself; samples belong to the weights that it exports."""
        exports = self.control.exporting and self.snapshot.step > 0
        return ("training", "saving", "sampling") if exports else ("training", "saving")

    def result_text(self, line: str) -> str:
        """Set the status line and send it; returns it with the run's warnings below, for the node."""
        self.snapshot.status = line
        self._send()
        return "\n".join([line, *(f"Warning: {warning}" for warning in self.snapshot.warnings)])

    def _add_progress(self, event: Progress) -> None:
        snapshot = self.snapshot
        snapshot.phase, snapshot.done, snapshot.total, snapshot.note = event.phase, event.done, event.total, event.note
        if event.phase == "training" or not snapshot.steps:
            self.display.progress(event.done, event.total)
        if event.phase != "training":
            snapshot.status = progress_line(event)

    def _add_start(self, event: Started) -> None:
        snapshot = self.snapshot
        snapshot.run, snapshot.step, snapshot.steps = event.run_dir.name, event.first_step, event.steps
        self._add_folder(event.run_dir)
        if self._workflow is not None:
            save_workflow(RunFolder(event.run_dir), self._workflow)
        if event.resumed_from:
            snapshot.resumed_at = event.first_step
            snapshot.status = f"resumed at step {event.first_step}/{event.steps}"

    def _add_folder(self, folder: Path) -> None:
        """Add the points, samples and checkpoints that the run folder already has."""
        run = RunFolder(folder)
        self.snapshot.points += [list(point) for point in run.losses()]
        self.snapshot.samples += sample_entries(run)
        self.snapshot.checkpoints += checkpoint_steps(run.checkpoints)
        losses = run.validation_losses()
        self.snapshot.validation += [list(point) for point in losses]
        self.snapshot.best_step = lowest(losses)

    def _add_step(self, event: Step) -> None:
        self._seconds.append(event.seconds)
        seconds = sum(self._seconds) / len(self._seconds)
        left = round((event.steps - event.step) * seconds)
        snapshot = self.snapshot
        snapshot.step, snapshot.seconds, snapshot.seconds_left = event.step, seconds, left
        snapshot.points.append([event.step, event.loss])
        speed = f"{1 / seconds:.2f} steps/s" if seconds < 1 else f"{seconds:.2f} s/step"
        minutes = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        snapshot.status = f"step {event.step}/{event.steps} · loss {event.loss:.4f} · {speed} · {minutes} left"

    def _add_validation(self, event: Validation) -> None:
        self.snapshot.validation.append([event.step, event.loss])
        if event.best:
            self.snapshot.best_step = event.step

    def _add_end(self, event: Finished) -> None:
        self.finished = event
        snapshot = self.snapshot
        if not snapshot.points:
            self._add_folder(event.run_dir)
        snapshot.run, snapshot.step, snapshot.steps = event.run_dir.name, event.step, event.steps
        snapshot.seconds_left = 0

    def _send(self, wait: bool = True) -> None:
        if wait:
            self._pace.wait()
        message = self.snapshot.message(self._sent)
        self._sent = self.snapshot.lengths()
        # To every page: the one that queued the run may be closed, and another one open.
        PromptServer.instance.send_sync(EVENT, message)


class LiveRuns:
    """The last run of each of the MAX_LIVE_RUNS most recent nodes."""

    def __init__(self) -> None:
        self._live_runs: OrderedDict[str, LiveRun] = OrderedDict()

    def add(self, live_run: LiveRun) -> None:
        """Register a run in the place of its node's last one."""
        node_id = live_run.snapshot.node_id
        self._live_runs.pop(node_id, None)
        self._live_runs[node_id] = live_run
        while len(self._live_runs) > MAX_LIVE_RUNS:
            self._live_runs.popitem(last=False)

    def snapshot(self, node_id: str) -> dict[str, Any] | None:
        """The node's last run, for JSON; None when it has none."""
        live_run = self._live_runs.get(node_id)
        return None if live_run is None else live_run.snapshot.to_dict()

    def control(self, node_id: str) -> RunControl | None:
        """The control of the node's run; None when it is not running."""
        live_run = self._live_runs.get(node_id)
        return live_run.control if live_run is not None and live_run.snapshot.state == "running" else None

    def running(self) -> set[str]:
        """Folder names of the runs in progress."""
        snapshots = [live_run.snapshot for live_run in list(self._live_runs.values())]
        return {snapshot.run for snapshot in snapshots if snapshot.state == "running"}


LIVE_RUNS = LiveRuns()
