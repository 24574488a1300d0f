"""Samples of a run whose request names none."""

from __future__ import annotations

import pytest

from trainer.config.samples import DEFAULT_CONTROL_URL
from trainer.errors import BadImage
from trainer.events import Notice, Sample
from trainer.training import sample_images


@pytest.mark.slow
def test_default_samples_without_their_image_follow_the_dataset(model, runs, monkeypatch):
    def fetch(url, *_):
        raise BadImage(f"{url}: cannot be reached")

    monkeypatch.setattr(sample_images, "fetch_control", fetch)
    own = {"ctrl_img_url": DEFAULT_CONTROL_URL, "prompt": "my own words"}
    default = [sample.model_dump() for sample in sample_images.DEFAULT_SAMPLES]
    events = list(runs.events(model, steps=1, samples=[*default, own]))
    prompts = [event.prompt for event in events if isinstance(event, Sample) and event.step == 0]
    assert prompts == ["pair number 0", "pair number one 1", "my own words"]
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert sum("first control images and captions" in notice for notice in notices) == 1


@pytest.mark.slow
def test_a_size_that_nobody_chose_follows_the_model_without_a_notice(model, runs):
    samples = [{"ctrl_img_url": "", "prompt": "x"}]

    def notices(run: str, **size: int) -> list[str]:
        events = runs.events(model, run, steps=1, samples=samples, **size)
        return [event.message for event in events if isinstance(event, Notice) and "cannot make" in event.message]

    assert notices("default", sample_width=1024, sample_height=1024) == []
    assert len(notices("chosen", sample_width=512, sample_height=512)) == 1
