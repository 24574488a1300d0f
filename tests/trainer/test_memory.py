"""What is said of memory before anything is loaded."""

from __future__ import annotations

import pytest

from trainer.config.settings import RunSettings
from trainer.memory.estimate import full_fine_tune_need
from trainer.models.edit_model import open_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base_model", "billions"), [("black-forest-labs/FLUX.1-Kontext-dev", 11.90), ("Qwen/Qwen-Image-Edit", 20.43)]
)
def test_a_full_fine_tune_says_what_it_takes(base_model: str, billions: float):
    model = open_model(base_model)
    assert model.transformer_parameters() / 1e9 == pytest.approx(billions, abs=0.01)
    need = full_fine_tune_need(model, RunSettings())
    assert f"{billions:.1f} billion" in need
    assert f"{billions * 16:.0f} GB" in need
    assert f"{billions * 4:.0f} GB" in full_fine_tune_need(model, RunSettings(optimizer="adafactor"))
    assert "over 4 devices" in full_fine_tune_need(model, RunSettings(), 4)


def test_a_tiny_model_needs_no_word(kontext):
    assert full_fine_tune_need(kontext, RunSettings()) is None
