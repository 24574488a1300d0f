"""What a page needs to draw a run: sent to it as it grows, and kept whole for a page that comes later."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy.model_management import InterruptProcessingException
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..trainer.events import Event, Finished, Progress, Sample, Started, Step, Warning
from ..trainer.runs import RunFolder
from .folders import output_folder
from .host import NodeDisplay, Pace, progress_line

EVENT = "edit_trainer.run"
KEPT_RUNS = 32
LISTS = ("points", "samples", "warnings")
"""What grows: a message has only what is new, a snapshot has all."""
SPEED_STEPS = 20
"""The last steps, whose mean duration gives the speed."""


class RunFeed:
    """One run of one node, as the page and the node show it."""

    def __init__(self, node_id: str) -> None:
        self.display = NodeDisplay(node_id)
        self.finished: Finished | None = None
        context = get_executing_context()
        self.whole: dict[str, Any] = {
            "node_id": node_id,
            "prompt_id": context.prompt_id if context else "",
            "run": "",
            "state": "running",
            "status": "",
            "step": 0,
            "steps": 0,
            "seconds_left": None,
            **{name: [] for name in LISTS},
        }
        self._sent = dict.fromkeys(LISTS, 0)
        self._pace = Pace()
        self._seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        RECENT.add(self)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the run goes; at the end the page is told how it ended."""
        try:
            yield
            self.whole["state"] = "finished"
        except InterruptProcessingException:
            self.whole |= {"state": "stopped", "status": "stopped; what is done is saved"}
            raise
        except BaseException as error:
            self.whole |= {"state": "failed", "status": str(error)}
            raise
        finally:
            self._send()

    def show(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Sample):
            self._sample(event.step, event.index, event.prompt, event.path)
            self.display.progress(self.whole["step"], self.whole["steps"], event.image)
        elif isinstance(event, Warning):
            logging.warning("%s", event.message)
            self.whole["warnings"].append(event.message)
        elif isinstance(event, Finished):
            self.finished = event
            if not self.whole["points"]:
                self._earlier(event.run_dir)
            self.whole |= {"run": event.run_dir.name, "step": event.step, "steps": event.steps, "seconds_left": 0}
        if self._pace.due():
            self._send(wait=False)

    def end(self, line: str) -> str:
        """Show the last line, below what there was to warn of; the text of both."""
        text = "\n".join([line, *(f"Warning: {warning}" for warning in self.whole["warnings"])])
        self.whole["status"] = line
        self.display.text(text, last=True)
        return text

    def _progress(self, event: Progress) -> None:
        if event.phase == "training" or not self.whole["steps"]:
            self.display.progress(event.done, event.total)
        if event.phase != "training":
            self._status(progress_line(event))

    def _started(self, event: Started) -> None:
        self.whole |= {"run": event.run_dir.name, "step": event.first_step, "steps": event.steps}
        self._earlier(event.run_dir)
        if event.resumed_from:
            self._status(f"resumed at step {event.first_step}/{event.steps}")

    def _earlier(self, folder: Path) -> None:
        """What the run's folder holds already."""
        run = RunFolder(folder)
        self.whole["points"] += [list(point) for point in run.losses()]
        prompts = json.loads((run.path / "request.json").read_text(encoding="utf-8"))["training_params"]["samples"]
        for step, files in run.drawn_samples().items():
            for index, file in files.items():
                if index < len(prompts):
                    self._sample(step, index, prompts[index]["prompt"], file)

    def _step(self, event: Step) -> None:
        self._seconds.append(event.seconds)
        seconds = sum(self._seconds) / len(self._seconds)
        left = round((event.steps - event.step) * seconds)
        self.whole |= {"step": event.step, "seconds_left": left}
        self.whole["points"].append([event.step, event.loss])
        speed = f"{1 / seconds:.2f} steps/s" if seconds < 1 else f"{seconds:.2f} s/step"
        minutes = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        self._status(f"step {event.step}/{event.steps} · loss {event.loss:.4f} · {speed} · {minutes} left")

    def _sample(self, step: int, index: int, prompt: str, file: Path) -> None:
        control = RunFolder(file.parent.parent).control_path(index)
        images = {"image": _viewable(file), "control": _viewable(control)}
        self.whole["samples"].append({"step": step, "index": index, "prompt": prompt, **images})

    def _status(self, line: str) -> None:
        self.whole["status"] = line
        self.display.text(line)

    def _send(self, wait: bool = True) -> None:
        if wait:
            self._pace.wait()
        message = self.whole | {name: self.whole[name][self._sent[name] :] for name in LISTS}
        self._sent = {name: len(self.whole[name]) for name in LISTS}
        server = PromptServer.instance
        server.send_sync(EVENT, message, server.client_id)


class RecentRuns:
    """The last run of each node, of the most recent nodes."""

    def __init__(self) -> None:
        self._feeds: OrderedDict[str, RunFeed] = OrderedDict()

    def add(self, feed: RunFeed) -> None:
        """A run begins."""
        node_id = feed.whole["node_id"]
        self._feeds.pop(node_id, None)
        self._feeds[node_id] = feed
        while len(self._feeds) > KEPT_RUNS:
            self._feeds.popitem(last=False)

    def snapshot(self, node_id: str) -> dict[str, Any] | None:
        """All there is to know of the node's last run."""
        feed = self._feeds.get(node_id)
        return None if feed is None else dict(feed.whole)


RECENT = RecentRuns()


def _viewable(file: Path) -> dict[str, str]:
    """An image of the output folder as ComfyUI's /view takes it."""
    folder = file.parent.relative_to(output_folder()).as_posix()
    return {"filename": file.name, "subfolder": folder, "type": "output"}
