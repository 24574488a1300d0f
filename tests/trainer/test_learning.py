"""That a LoRA learns: the demo, shortened, on the embedded models."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from trainer.cli import demo
from trainer.cli.main import main
from trainer.tiny.shapes import BASE_EDITS, TAUGHT_EDITS, TAUGHT_TWO_PICTURE_EDITS, TWO_PICTURE_EDITS

pytestmark = pytest.mark.slow

BASES = ("tiny/flux-kontext", "tiny/qwen-image-edit", "tiny/qwen-image-edit-plus", "tiny/flux2-klein")


@pytest.fixture
def short(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo of this base model alone, in 64 steps of a quarter of its batch, with a quarter of its pairs."""
    monkeypatch.setattr(demo, "LESSONS", {base_model: demo.LESSONS[base_model]})
    monkeypatch.setattr(demo, "HELD_OUT_PAIRS", 4)
    monkeypatch.setattr(demo, "TRAINING_PAIRS", demo.TRAINING_PAIRS // 4)
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | {"sample_steps": 6})
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | {"steps": 64, "batch_size": 4})


def taught(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> dict:
    assert main(["demo", "--out", str(folder), *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("base_model", BASES)
def test_a_lora_teaches_an_edit_that_the_base_has_never_seen(base_model, tmp_path, capsys, short):
    taught_edits, base_edits = {*TAUGHT_EDITS, *TAUGHT_TWO_PICTURE_EDITS}, {*BASE_EDITS, *TWO_PICTURE_EDITS}
    assert demo.LESSONS[base_model] in taught_edits - base_edits
    folder = tmp_path / "demo"
    (score,) = taught(capsys, folder).values()
    assert score["psnr_after"] > 20
    assert score["psnr_after"] > max(score["psnr_before"], score["psnr_copy"]) + 5
    swapped = [value for name, value in score.items() if name.startswith("psnr_swapped")]
    assert len(swapped) == (2 if demo.LESSONS[base_model] in TAUGHT_TWO_PICTURE_EDITS else 1)
    assert score["psnr_after"] > max(swapped) + 4
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > 700
    if base_model == BASES[0]:
        assert_done_again_is_found(capsys, folder, base_model, score)
        assert_int8_learns_as_well(capsys, folder, tmp_path / "int8", score["psnr_after"])


def assert_done_again_is_found(capsys: pytest.CaptureFixture[str], folder: Path, base_model: str, score: dict) -> None:
    log = folder / base_model.rpartition("/")[2] / "log.jsonl"
    before = log.read_bytes()
    assert list(taught(capsys, folder).values()) == [score]
    assert log.read_bytes() == before


def assert_int8_learns_as_well(capsys: pytest.CaptureFixture[str], encoded: Path, folder: Path, psnr: float) -> None:
    """By one model: what codes do to the gradients of each family is measured in test_precision.py."""
    shutil.copytree(encoded / "edit_trainer_cache", folder / "edit_trainer_cache")
    (score,) = taught(capsys, folder, "--precision", "int8").values()
    assert score["psnr_after"] > psnr - 1
