"""Transformer, text encoder and VAE share a device: what does not fit beside the one in use leaves, nothing else does.

The device is `meta`, whose memory is what the test says; the components are modules of stated sizes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from trainer.families.records import CONFIGS
from trainer.memory import model_parts
from trainer.memory.codec_bytes import codec_bytes
from trainer.memory.model_parts import TEXT_WORK_BYTES, ModelComponents
from trainer.memory.placement import Placement
from trainer.memory.plan import Plan

GB = 10**9


class Part:
    """A component, or the transformer, of some bytes, that says where it is."""

    def __init__(self, card: Card, name: str, size: int) -> None:
        self.card, self.name = card, name
        self.module = nn.Module()
        self.module.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)

    def to(self, device: torch.device | str) -> None:
        moved = "out" if torch.device(device).type == "cpu" else "in"
        self.card.moves.append(f"{self.name} {moved}")
        self.card.held[self.name] = self.module.weight.nbytes if moved == "in" else 0


class Transformer(Part, Placement):
    """Stands for a transformer's placement; its activations are those of a step, which end with it."""

    device_bytes = property(lambda self: self.module.weight.nbytes)


@dataclass
class Card:
    """A device of a size, of which others have taken some before."""

    total: int
    taken: int = 0
    held: dict[str, int] = field(default_factory=dict)
    """Bytes of each component on the device, and of the optimizer."""
    cached: int = 0
    """Bytes that torch's allocator holds without using them."""
    moves: list[str] = field(default_factory=list)

    @property
    def allocated(self) -> int:
        return self.taken + sum(self.held.values())


@dataclass
class Model:
    """A model whose components are parts."""

    card: Card
    text: int
    family: object
    codec: int = GB // 4
    ports: object = None
    adapter: object = None

    def load_text_encoder(self, device: torch.device, dtype: torch.dtype) -> Part:
        return Part(self.card, "text", self.text)

    def load_codec(self, device: torch.device, dtype: torch.dtype) -> Part:
        return Part(self.card, "codec", self.codec)


def published(model) -> object:
    """The family of a tiny model with the VAE of the published one."""
    config = json.loads((CONFIGS / model.family.info.name / "vae" / "config.json").read_text())
    return type(model.family)(model.family.variant, config)


@pytest.fixture
def shared(monkeypatch, qwen):
    """Components on a card: gigabytes of the card, of the text encoder, the transformer and the whole plan."""

    def make(card: float, text: float, transformer: float, planned: float, offload: str = "auto"):
        device = Card(int(card * GB))
        monkeypatch.setattr(model_parts, "free_memory", lambda _: device.total - device.allocated)
        monkeypatch.setattr(model_parts, "allocated_memory", lambda _: device.allocated)
        expected = {"frozen weights": int(transformer * GB), "activations": int((planned - transformer) * GB)}
        plan = Plan(precision="int8", dtype=torch.bfloat16, offload=offload, expected=expected)
        components = ModelComponents(Model(device, int(text * GB), published(qwen)), torch.device("meta"), plan)
        loaded = Transformer(device, "transformer", int(transformer * GB))
        monkeypatch.setattr(components, "_load_transformer", lambda *_: loaded)
        return components, device

    return make


FULL_CARDS = {
    "Kontext, 24 GB, T5 fp8": (24, 5.2, 8.7, 23.2),
    "Kontext, 32 GB, T5 bf16": (32, 9.8, 8.7, 31.8),
    "Qwen, 24 GB, fp8": (24, 9.4, 13.7, 23.9),
    "Qwen, 80 GB, bf16": (80, 16.6, 27.2, 79.9),
    "room for the encoder's weights beside the transformer's": (24, 5.2, 8.7, 20.0),
}


@pytest.mark.parametrize("sizes", FULL_CARDS.values(), ids=FULL_CARDS)
def test_nothing_stays_beside_a_training_that_fills_the_card(shared, sizes):
    components, card = shared(*sizes)
    components.text_encoder()
    components.placement()
    assert card.held == {"text": 0, "transformer": int(sizes[2] * GB)}


def test_a_text_encoder_that_fits_beside_the_training_never_moves(shared):
    """For texts that are not cached, encoder and transformer alternate."""
    components, card = shared(80, 9.8, 17, 60)
    for _ in range(3):
        components.text_encoder()
        components.placement()
    assert card.moves == ["text in", "transformer in"]


def test_the_transformer_stays_while_samples_are_decoded(shared):
    components, card = shared(24, 9.4, 13.7, 23.9)
    components.placement()
    card.held["optimizer"] = int(1.7 * GB)
    for _ in range(3):
        components.codec(2**20)
        components.placement()
    assert [move for move in card.moves if "transformer" in move] == ["transformer in"]
    assert card.held["codec"] == 0, "the plan has no room for it"


def test_the_transformer_leaves_for_an_image_that_does_not_fit_beside_it(shared):
    components, card = shared(24, 9.4, 13.7, 23.9)
    components.placement()
    components.codec(2**20)
    assert card.held["transformer"]
    assert codec_bytes(components.model.family, torch.bfloat16, 2**22) > 10 * GB
    components.codec(2**22)
    assert not card.held["transformer"]
    components.placement()
    assert card.held["transformer"]


def test_trained_values_and_their_optimizer_are_part_of_the_plan(shared):
    """They are allocated already when the transformer comes back from the host."""
    components, card = shared(24, 6, 13.7, 16)
    components.placement()
    card.held["optimizer"] = 2 * GB
    components.text_encoder()
    components.placement()
    assert card.held["text"], "16 and 6 GB are less than 24"


def test_what_another_program_holds_is_not_free(shared):
    components, card = shared(24, 6, 13.7, 16)
    components.text_encoder()
    card.total -= 3 * GB
    components.placement()
    assert not card.held["text"]


def test_phases_take_turns_and_none_keeps_all(shared):
    components, card = shared(80, 5, 10, 20, offload="phases")
    components.text_encoder()
    components.placement()
    assert card.held == {"text": 0, "transformer": 10 * GB}
    components, card = shared(24, 9, 10, 23, offload="none")
    components.text_encoder()
    components.placement()
    assert card.held == {"text": 9 * GB, "transformer": 10 * GB}


def test_the_text_encoder_needs_room_to_compute(shared):
    components, card = shared(24, 9, 14.5, 20)
    components.placement()
    components.text_encoder()
    assert 24 * GB - 9 * GB - 14.5 * GB < TEXT_WORK_BYTES
    assert not card.held["transformer"]


@pytest.mark.parametrize("family", ["qwen-image-edit", "flux-kontext"])
def test_decoding_takes_memory_by_the_pixel(family, qwen, kontext):
    """The published VAEs, measured on an H200: 4.44 GB (Qwen) and 2.553 GB (Kontext) at 1024 x 1024."""
    model, measured = {"qwen-image-edit": (qwen, 4.44e9), "flux-kontext": (kontext, 2.553e9)}[family]
    assert measured < codec_bytes(published(model), torch.bfloat16, 2**20) < 1.1 * measured
