"""What is said of memory before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import BadInput
from trainer.memory import full_fine_tune_need
from trainer.models import open_model


@pytest.mark.parametrize(
    ("base_model", "billions"), [("black-forest-labs/FLUX.1-Kontext-dev", 11.90), ("Qwen/Qwen-Image-Edit", 20.43)]
)
def test_a_full_fine_tune_says_what_it_takes(base_model: str, billions: float, monkeypatch: pytest.MonkeyPatch):
    parameters = open_model(base_model).transformer_parameters()
    assert parameters / 1e9 == pytest.approx(billions, abs=0.01)
    need = full_fine_tune_need(parameters, torch.device("cpu"))
    assert f"{billions:.1f} billion" in need
    assert f"{billions * 16:.0f} GB" in need
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000_000_000, 24_000_000_000))
    with pytest.raises(BadInput, match="24 GB"):
        full_fine_tune_need(parameters, torch.device("cuda"))


def test_a_tiny_model_needs_no_word(kontext):
    assert full_fine_tune_need(kontext.transformer_parameters(), torch.device("cpu")) is None
