"""What a page needs to draw a run: sent to it as it grows, and kept whole for a page that comes later."""

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

from ..trainer.events import Checkpoint, Event, Finished, Notice, Planned, Progress, RunControl, Sample, Started, Step
from ..trainer.training.checkpoint import checkpoint_steps
from ..trainer.training.run_folder import RunFolder
from .folders import runs_folder
from .host import NodeDisplay, Pace, card_memory, progress_line
from .saved_runs import sample_entries, sample_entry, save_workflow

EVENT = "edit_trainer.run"
MAX_LIVE_RUNS = 32
LISTS = ("points", "samples", "checkpoints", "warnings")
"""What grows: a message has only what is new, and under `from` where that begins; a snapshot has all."""
MEMORY_SECONDS = 1.0
"""Between two looks at the card's memory."""
SPEED_STEPS = 20
"""The last steps, whose mean duration gives the speed."""


class LiveRun:
    """One run of one node, as the page and the node show it."""

    def __init__(self, node_id: str, run: str, plan: str, workflow: dict[str, Any] | None) -> None:
        """`workflow` is the page's, kept with the run; None when it was not queued by a page."""
        self._workflow = workflow
        self.display = NodeDisplay(node_id)
        self.control = RunControl()
        """What the panel's buttons press; for `train`."""
        self.finished: Finished | None = None
        context = get_executing_context()
        self.whole: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "node_id": node_id,
            "prompt_id": context.prompt_id if context else "",
            "run": run,
            "state": "running",
            "status": "",
            "plan": plan,
            "phase": "loading",
            "done": 0,
            "total": 0,
            "note": "",
            "step": 0,
            "steps": 0,
            "seconds": None,
            "seconds_left": None,
            "memory": None,
            **{name: [] for name in LISTS},
        }
        self._sent = dict.fromkeys(LISTS, 0)
        self._pace, self._memory_pace = Pace(), Pace(MEMORY_SECONDS)
        self._seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        LIVE_RUNS.add(self)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the run goes; at the end the page is told how it ended. A run that was asked to stop ends as one
        that was cancelled: there is nothing yet for the nodes that come after it."""
        try:
            yield
            if self.finished is None or self.finished.stopped:
                raise InterruptProcessingException
            self.whole["state"] = "finished"
        except InterruptProcessingException:
            saved = checkpoint_steps(RunFolder(runs_folder() / self.whole["run"]).checkpoints)
            self.whole["checkpoints"] += [step for step in saved if step not in self.whole["checkpoints"]]
            self.whole |= {"state": "stopped", "status": "stopped; what is done is saved", "seconds_left": None}
            raise
        except BaseException as error:
            self.whole |= {"state": "failed", "status": str(error)}
            raise
        finally:
            self._send()

    def show(self, event: Event) -> None:
        """Take in one event. Raises InterruptProcessingException where a run that was asked to stop would not by
        itself come to an end soon."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Planned):
            self.whole["plan"] += f": {event.line}"
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Sample):
            self.whole["samples"].append(sample_entry(event.step, event.index, event.prompt, event.path))
        elif isinstance(event, Notice):
            logging.warning("%s", event.message)
            self.whole["warnings"].append(event.message)
        elif isinstance(event, Checkpoint):
            if event.step not in self.whole["checkpoints"]:
                self.whole["checkpoints"].append(event.step)
        elif isinstance(event, Finished):
            self.finished = event
            if not self.whole["points"]:
                self._earlier(event.run_dir)
            self.whole |= {"run": event.run_dir.name, "step": event.step, "steps": event.steps, "seconds_left": 0}
        if self._memory_pace.due():
            self.whole["memory"] = card_memory()
        if self._pace.due():
            self._send(wait=False)
        if self.control.stopping and isinstance(event, Progress) and event.phase not in ("training", "saving"):
            raise InterruptProcessingException

    def end(self, line: str) -> str:
        """Take the last line in; its text with what there was to warn of."""
        self.whole["status"] = line
        return "\n".join([line, *(f"Warning: {warning}" for warning in self.whole["warnings"])])

    def _progress(self, event: Progress) -> None:
        self.whole |= {"phase": event.phase, "done": event.done, "total": event.total, "note": event.note}
        if event.phase == "training" or not self.whole["steps"]:
            self.display.progress(event.done, event.total)
        if event.phase != "training":
            self.whole["status"] = progress_line(event)

    def _started(self, event: Started) -> None:
        self.whole |= {"run": event.run_dir.name, "step": event.first_step, "steps": event.steps}
        self._earlier(event.run_dir)
        if self._workflow is not None:
            save_workflow(RunFolder(event.run_dir), self._workflow)
        if event.resumed_from:
            self.whole["status"] = f"resumed at step {event.first_step}/{event.steps}"

    def _earlier(self, folder: Path) -> None:
        """What the run's folder holds already."""
        run = RunFolder(folder)
        self.whole["points"] += [list(point) for point in run.losses()]
        self.whole["samples"] += sample_entries(run)
        self.whole["checkpoints"] += checkpoint_steps(run.checkpoints)

    def _step(self, event: Step) -> None:
        self._seconds.append(event.seconds)
        seconds = sum(self._seconds) / len(self._seconds)
        left = round((event.steps - event.step) * seconds)
        self.whole |= {"step": event.step, "seconds": seconds, "seconds_left": left}
        self.whole["points"].append([event.step, event.loss])
        speed = f"{1 / seconds:.2f} steps/s" if seconds < 1 else f"{seconds:.2f} s/step"
        minutes = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        self.whole["status"] = f"step {event.step}/{event.steps} · loss {event.loss:.4f} · {speed} · {minutes} left"

    def _send(self, wait: bool = True) -> None:
        if wait:
            self._pace.wait()
        message = self.whole | {name: self.whole[name][self._sent[name] :] for name in LISTS} | {"from": self._sent}
        self._sent = {name: len(self.whole[name]) for name in LISTS}
        # To every page: the one that queued the run may be closed, and another one open.
        PromptServer.instance.send_sync(EVENT, message)


class LiveRuns:
    """The last run of each node, of the most recent nodes."""

    def __init__(self) -> None:
        self._live_runs: OrderedDict[str, LiveRun] = OrderedDict()

    def add(self, live_run: LiveRun) -> None:
        """A run begins."""
        node_id = live_run.whole["node_id"]
        self._live_runs.pop(node_id, None)
        self._live_runs[node_id] = live_run
        while len(self._live_runs) > MAX_LIVE_RUNS:
            self._live_runs.popitem(last=False)

    def snapshot(self, node_id: str) -> dict[str, Any] | None:
        """All there is to know of the node's last run."""
        live_run = self._live_runs.get(node_id)
        return None if live_run is None else live_run.whole | {name: list(live_run.whole[name]) for name in LISTS}

    def control(self, node_id: str) -> RunControl | None:
        """What stops the node's run, or has it draw samples; None when it is not running."""
        live_run = self._live_runs.get(node_id)
        return live_run.control if live_run is not None and live_run.whole["state"] == "running" else None

    def running(self) -> set[str]:
        """The names of the runs that are going on."""
        return {
            live_run.whole["run"] for live_run in list(self._live_runs.values()) if live_run.whole["state"] == "running"
        }


LIVE_RUNS = LiveRuns()
