"""Text encoders and VAEs that a card does not hold: layers are streamed, to the bit; a VAE works in tiles and says so.

`meta` stands for the card where only places count.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import PreTrainedModel

from trainer.events import Notice
from trainer.memory import model_parts
from trainer.memory.encoder_bytes import encoder_bytes
from trainer.memory.model_parts import TEXT_WORK_BYTES, ModelComponents
from trainer.memory.plan import Plan
from trainer.memory.streamed_module import StreamedModule, repeated_layers
from trainer.models import diffusers_family
from trainer.models.diffusers_family import PipelineTextEncoder
from trainer.models.edit_model import EditModel, open_model
from trainer.models.family import Family

pytestmark = pytest.mark.slow

CPU, META = torch.device("cpu"), torch.device("meta")
PLAN = Plan(precision="fp32", dtype=torch.float32, offload="auto")
LAYERS = 3


@pytest.fixture(params=["flux-kontext", "qwen-image-edit"])
def model(request, kontext, qwen):
    return {m.family.info.name: m for m in (kontext, qwen)}[request.param]


def bytes_of(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Deeper:
    """A model whose text encoders have three layers in every list, with random weights."""

    model: EditModel

    @property
    def family(self) -> Family:
        return self.model.family

    ports = None

    def load_text_encoder(self, device: torch.device, dtype: torch.dtype) -> PipelineTextEncoder:
        encoder = self.model.load_text_encoder(device, dtype)
        torch.manual_seed(0)
        parts = {name: part for name, part in encoder.pipeline.components.items() if isinstance(part, PreTrainedModel)}
        for name, part in parts.items():
            config = copy.deepcopy(part.config)
            for own in (config, getattr(config, "text_config", config), getattr(config, "vision_config", config)):
                for depth in {"num_layers", "num_hidden_layers", "depth"} & set(vars(own)):
                    setattr(own, depth, LAYERS)
                if getattr(own, "layer_types", None):
                    own.layer_types = own.layer_types[:1] * LAYERS
            setattr(encoder.pipeline, name, type(part)(config).to(dtype))
        return type(encoder)(encoder.pipeline, device, "deeper", *self._length(encoder))

    def _length(self, encoder: PipelineTextEncoder) -> list[int]:
        return [encoder.text_length] if hasattr(encoder, "text_length") else []


@pytest.fixture
def deeper(model):
    return Deeper(model)


def test_a_streamed_text_encoder_gives_the_resident_ones_bits(deeper):
    encoder = deeper.load_text_encoder(CPU, torch.float32)
    controls = [torch.rand(1, 3, 64, 96)]
    captions = ["a red square", "draw a frame around the picture", ""]
    expected = [encoder.encode(caption, controls) for caption in captions]
    streamed = StreamedModule(encoder.module, CPU)
    assert len(streamed.streamer.blocks) == 2 * LAYERS, "CLIP and T5, or vision and language"
    encoder.mover = streamed
    encoder.to(CPU)
    for _ in range(2):
        for caption, theirs in zip(captions, expected, strict=True):
            ours = encoder.encode(caption, controls)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_only_a_text_encoder_that_does_not_fit_is_streamed(deeper, monkeypatch):
    encoder = deeper.load_text_encoder(CPU, torch.float32)
    layers = [tensor for layer in repeated_layers(encoder.module) for tensor in layer.parameters()]
    size = bytes_of(encoder.module.parameters()) + bytes_of(encoder.module.buffers())
    for missing in (0, 1):
        free = TEXT_WORK_BYTES + size - missing
        monkeypatch.setattr(model_parts, "free_memory", lambda _, free=free: free)
        components = ModelComponents(deeper, META, PLAN)
        module = components.text_encoder().module
        on_host = [tensor for tensor in module.parameters() if tensor.device == CPU]
        assert bytes_of(on_host) == (bytes_of(layers) if missing else 0)
        assert (components._bytes("text_encoder") < size) == bool(missing)


def test_a_plan_can_ask_for_a_streamed_text_encoder(deeper, monkeypatch):
    monkeypatch.setattr(model_parts, "free_memory", lambda _: 10**12)
    for wanted in (False, True):
        components = ModelComponents(deeper, META, replace(PLAN, stream_text_encoder=wanted))
        assert isinstance(components.text_encoder().mover, StreamedModule) == wanted


def test_bytes_of_text_encoders_are_counted_without_loading_them(model):
    module = model.load_text_encoder(CPU, torch.float32).module
    assert encoder_bytes(model, torch.float32).resident == bytes_of(module.parameters())


PUBLISHED = {
    "black-forest-labs/FLUX.1-Kontext-dev": (9.77e9, 1.11e9),
    "Qwen/Qwen-Image-Edit": (15.5e9, 2.1e9),
}
"""Bytes in bf16, and with streamed layers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_text_encoders_fit_8_gb_when_they_are_streamed(name):
    counted = encoder_bytes(open_model(name), torch.bfloat16)
    resident, streamed = PUBLISHED[name]
    assert counted.resident == pytest.approx(resident, rel=0.02)
    assert counted.streamed == pytest.approx(streamed, rel=0.05)


def smooth_image(height: int, width: int) -> torch.Tensor:
    """An image without edges."""
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    return torch.stack([rows * columns, rows.expand(-1, width), columns.expand(height, -1)])[None].contiguous()


@pytest.fixture
def codec(model, monkeypatch):
    monkeypatch.setattr(diffusers_family, "TILE", 64)
    return model.load_codec(CPU, torch.float32)


def limit_memory(codec, monkeypatch, pixels: int) -> list[int]:
    """Let the codec run out of memory above so many pixels; returns the list of the tries that did."""
    refused = []
    for name, scale in (("encoder", 1), ("decoder", diffusers_family.VAE_SCALE)):
        real = getattr(codec.module, name).forward

        def forward(tensor, *args, real=real, scale=scale, **kwargs):
            if tensor.shape[-1] * tensor.shape[-2] * scale**2 > pixels:
                refused.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(tensor, *args, **kwargs)

        monkeypatch.setattr(getattr(codec.module, name), "forward", forward)
    return refused


def test_a_vae_that_runs_out_of_memory_works_in_tiles(codec, monkeypatch):
    image = smooth_image(96, 128)
    latents = codec.encode(image)
    pixels = codec.decode(latents)
    assert not codec.has_tiled
    refused = limit_memory(codec, monkeypatch, 64 * 64)
    tiled = codec.encode(image)
    assert codec.has_tiled
    assert tiled.shape == latents.shape
    assert not torch.equal(tiled, latents)
    assert torch.isfinite(tiled).all()
    assert codec.decode(latents).shape == pixels.shape
    assert len(refused) == 1, "it has learned"


def test_other_components_leave_before_tiles_are_made(codec, monkeypatch):
    image = smooth_image(96, 128)
    expected = codec.encode(image)
    refused = limit_memory(codec, monkeypatch, 64 * 64)

    def leave() -> bool:
        monkeypatch.undo()
        return True

    codec.make_room = leave
    assert torch.equal(codec.encode(image), expected)
    assert refused
    assert not codec.has_tiled


def test_several_images_are_halved_by_the_caller_first(codec, monkeypatch):
    limit_memory(codec, monkeypatch, 64 * 64)
    with pytest.raises(torch.OutOfMemoryError):
        codec.encode(smooth_image(96, 128).repeat(2, 1, 1, 1))
    assert not codec.has_tiled


def test_a_card_without_room_for_whole_images_gets_tiles_and_a_notice(model, monkeypatch):
    free = {"bytes": 10**12}
    monkeypatch.setattr(model_parts, "free_memory", lambda _: free["bytes"])
    components = ModelComponents(model, META, PLAN)
    assert not components.codec(2**22).module.use_tiling
    assert not list(components.notices())
    free["bytes"] = 10**6
    assert components.codec(2**22).module.use_tiling
    (notice,) = components.notices()
    assert isinstance(notice, Notice)
    assert "tiles" in notice.message
    assert not list(components.notices())
    free["bytes"] = 10**12
    assert not components.codec(2**22).module.use_tiling
