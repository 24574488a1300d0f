"""Killed without warning eight times, some inside the writing of a checkpoint: nothing but the last step is lost."""

import re
from pathlib import Path

import pytest

from trainer.training.checkpoint import checkpoint_steps
from trainer.training.run_folder import RunFolder

from .processes import run_script

pytestmark = pytest.mark.slow

KILLS = 8


def start(folder: Path, parquet: Path, kills: int, *more: str) -> str:
    return run_script("tests.trainer.killed_run", folder, parquet, kills, *more)


@pytest.mark.parametrize("base_model", ["tiny/flux-kontext", "tiny/flux2-klein"])
def test_kills_lose_nothing(runs, base_model):
    runs.write()
    told = start(runs.folder / "killed", runs.parquet, KILLS, base_model)
    assert "failed" not in told, told
    kills = re.findall(r"killed=(\w+) inside=(\w+) before=(\d+) after=(\d+)", told)
    assert len(kills) == KILLS
    assert all(int(after) >= int(before) for _, _, before, after in kills), told
    assert [killed for killed, *_ in kills] == ["True"] * KILLS, told
    assert sum(inside == "True" for _, inside, *_ in kills) == KILLS // 2, told
    assert told.endswith("finished=True\n"), told
    assert "finished=True" in start(runs.folder / "whole", runs.parquet, 0, base_model)
    killed = runs.folder / "killed" / "killed-000020.safetensors"
    assert killed.read_bytes() == (runs.folder / "whole" / "whole-000020.safetensors").read_bytes()
    assert runs.losses("killed") == runs.losses("whole")
    assert not list((runs.folder / "killed").rglob(".writing-*"))


def test_kills_lose_neither_the_average_nor_the_best_step(runs):
    runs.write()
    told = start(runs.folder / "killed", runs.parquet, KILLS // 2, "averaged")
    assert "failed" not in told, told
    assert len(re.findall("killed=True", told)) == KILLS // 2, told
    assert told.endswith("finished=True\n"), told
    assert "finished=True" in start(runs.folder / "whole", runs.parquet, 0, "averaged")
    killed, whole = runs.folder / "killed", runs.folder / "whole"
    files = sorted(path.name.removeprefix("whole") for path in whole.glob("*.safetensors"))
    assert len(files) == 4, files
    for name in files:
        assert (killed / f"killed{name}").read_bytes() == (whole / f"whole{name}").read_bytes(), name
    assert RunFolder(killed).validation_losses() == RunFolder(whole).validation_losses()
    assert checkpoint_steps(killed / "checkpoints") == checkpoint_steps(whole / "checkpoints")
    assert (killed / "checkpoints" / "best.json").read_bytes() == (whole / "checkpoints" / "best.json").read_bytes()
