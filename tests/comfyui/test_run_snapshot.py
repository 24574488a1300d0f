"""Snapshots of runs as dicts for the page; needs no ComfyUI."""

from __future__ import annotations

from .run_snapshots import LiveSnapshot, RunSnapshot, RunSummary, keys

RUN_KEYS = {
    *("id", "run", "state", "status", "plan", "phase", "done", "total", "step", "steps", "seconds", "seconds_left"),
    *("memory", "points", "samples", "checkpoints", "warnings", "workflow_id", "resumed_at"),
    *("validation", "best_step"),
}
LIVE_KEYS = RUN_KEYS | {"node_id", "prompt_id", "note"}
SUMMARY_KEYS = {
    *("run", "state", "base_model", "step", "steps", "loss", "seconds", "thumbnail", "lora", "changed", "smoothed"),
}
"""Keys that the page and other programs read."""


def live() -> LiveSnapshot:
    return LiveSnapshot(id="1", node_id="2", prompt_id="3", run="name", state="running", points=[[1, 0.5], [2, 0.25]])


def test_the_keys_that_the_page_reads():
    assert keys(LiveSnapshot) == live().to_dict().keys() == LIVE_KEYS
    assert keys(RunSnapshot) == RUN_KEYS
    assert keys(RunSummary) == SUMMARY_KEYS


def test_a_message_has_what_is_new_and_where_it_begins():
    snapshot = live()
    sent = snapshot.lengths()
    snapshot.points.append([3, 0.125])
    snapshot.warnings.append("careful")
    message = snapshot.message(sent)
    assert message.keys() == LIVE_KEYS | {"from"}
    assert message["from"] == {"points": 2, "samples": 0, "checkpoints": 0, "warnings": 0, "validation": 0}
    assert (message["points"], message["warnings"], message["run"]) == ([[3, 0.125]], ["careful"], "name")


def test_a_dict_does_not_grow_with_the_run():
    snapshot = live()
    before = snapshot.to_dict()
    snapshot.points.append([3, 0.125])
    assert len(before["points"]) == 2
