"""A few attempts of each campaign of `campaigns.py`."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from . import campaigns

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]


def test_a_signal_in_each_phase_loses_nothing(tmp_path: Path) -> None:
    attempts = list(campaigns.kills(tmp_path, 1, 1, ("tiny/flux-kontext",)))
    assert len(attempts) == 6
    assert [attempt for attempt in attempts if attempt[1]] == []


def test_of_two_processes_one_trains_and_the_other_says_why_not(tmp_path: Path) -> None:
    attempts = list(campaigns.pairs(tmp_path, 1))
    assert [attempt for attempt in attempts if attempt[1]] == []


def test_changed_files_cost_a_message_at_most(tmp_path: Path) -> None:
    attempts = list(islice(campaigns.damage(tmp_path, 3), 3))
    assert [attempt for attempt in attempts if attempt[1]] == []
