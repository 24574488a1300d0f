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

BASES = [
    pytest.param(base_model, marks=pytest.mark.xdist_group(base_model))
    for base_model in ("tiny/flux-kontext", "tiny/qwen-image-edit", "tiny/qwen-image-edit-plus")
]
"""The tests of one base model run in one process, so that the second finds what the first has taught and encoded."""


TAUGHT: dict[str, tuple[float, Path]] = {}
"""psnr_after and folder of what has been taught in float32."""


@pytest.fixture
def short(base_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo of this base model alone, in 80 steps of a quarter of its batch, with a quarter of its pairs."""
    monkeypatch.setattr(demo, "LESSONS", {base_model: demo.LESSONS[base_model]})
    monkeypatch.setattr(demo, "HELD_OUT_PAIRS", 4)
    monkeypatch.setattr(demo, "TRAINING_PAIRS", demo.TRAINING_PAIRS // 4)
    monkeypatch.setattr(demo, "TRAINING", demo.TRAINING | {"steps": 80, "batch_size": 4})


def taught(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> dict:
    assert main(["demo", "--out", str(folder), *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("base_model", BASES)
def test_a_lora_teaches_an_edit_that_the_base_has_never_seen(base_model, tmp_path, capsys, short):
    taught_edits, base_edits = {*TAUGHT_EDITS, *TAUGHT_TWO_PICTURE_EDITS}, {*BASE_EDITS, *TWO_PICTURE_EDITS}
    assert demo.LESSONS[base_model] in taught_edits - base_edits
    folder = tmp_path / "demo"
    (score,) = taught(capsys, folder).values()
    TAUGHT[base_model] = score["psnr_after"], folder
    assert score["psnr_after"] > 20
    assert score["psnr_after"] > max(score["psnr_before"], score["psnr_copy"]) + 5
    swapped = [value for name, value in score.items() if name.startswith("psnr_swapped")]
    assert len(swapped) == (2 if base_model == "tiny/qwen-image-edit-plus" else 1)
    assert score["psnr_after"] > max(swapped) + 4
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > 700
    log = folder / base_model.rpartition("/")[2] / "log.jsonl"
    before = log.read_bytes()
    assert list(taught(capsys, folder).values()) == [score]
    assert log.read_bytes() == before


@pytest.mark.parametrize("base_model", BASES[:1])
def test_it_is_learned_as_well_on_an_int8_base(base_model, tmp_path, capsys, short):
    """By one of them: what codes do to the gradients of each family is measured in test_precision.py."""
    if base_model not in TAUGHT:
        TAUGHT[base_model] = taught(capsys, tmp_path / "plain")[base_model]["psnr_after"], tmp_path / "plain"
    plain, folder = TAUGHT[base_model]
    shutil.copytree(folder / "edit_trainer_cache", tmp_path / "int8" / "edit_trainer_cache")
    score = taught(capsys, tmp_path / "int8", "--precision", "int8")[base_model]
    assert score["psnr_after"] > plain - 1
