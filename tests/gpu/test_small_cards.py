"""Text encoders and VAEs on a card that does not hold them: streamed to the bit, and in tiles."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from trainer.families.records import CONFIGS
from trainer.memory.codec_bytes import codec_bytes
from trainer.memory.pinned import PAGE_LOCKS
from trainer.memory.streamed_module import StreamedModule
from trainer.models.edit_model import open_model

CUDA = torch.device("cuda", 0)
BASES = {"kontext": "black-forest-labs/FLUX.1-Kontext-dev", "qwen": "Qwen/Qwen-Image-Edit"}
LAYERS = 4
SIDE = 1024


def test_a_streamed_text_encoder_gives_the_resident_ones_bits(record_property: Callable[[str, object], None]) -> None:
    """T5-XXL at full width with few layers."""
    published = json.loads((CONFIGS / "flux-kontext" / "text_encoder_2" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    with CUDA:
        encoder = T5EncoderModel(T5Config.from_dict(published | {"num_layers": LAYERS})).to(torch.bfloat16)
    encoder.eval().requires_grad_(False)
    texts = [torch.randint(0, published["vocab_size"], (1, 512), device=CUDA) for _ in range(3)]
    with torch.no_grad():
        expected = [encoder(text)[0] for text in texts]
        encoder.to("cpu")
        torch.cuda.empty_cache()
        locked = PAGE_LOCKS.locked
        streamed = StreamedModule(encoder, CUDA)
        record_property("figure", f"page-locked for {LAYERS} layers: {(PAGE_LOCKS.locked - locked) / 1e9:.2f} GB")
        streamed.to(CUDA)
        for _ in range(2):
            assert all(torch.equal(encoder(text)[0], theirs) for text, theirs in zip(texts, expected, strict=True))
        streamed.to("cpu")
    assert streamed.device_bytes < 0.8 * sum(parameter.nbytes for parameter in encoder.parameters())


@pytest.fixture(params=BASES)
def codec(request: pytest.FixtureRequest):
    """A family and its published VAE with random weights, on the card."""
    family = open_model(BASES[request.param]).family
    torch.manual_seed(0)
    vae = family.vae_file.model.from_config(dict(family.vae_config))
    torch.nn.Module.to(vae, CUDA, torch.bfloat16)
    return family, family.wrap_vae(vae, CUDA, "")


def peak(way: Callable[[], object]) -> int:
    """Bytes that are allocated at the peak of a call, besides those before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before


def test_the_vae_takes_what_is_counted_for_it(codec, record_property: Callable[[str, object], None]) -> None:
    family, vae = codec
    image, latents = torch.rand(1, 3, SIDE, SIDE), torch.randn(1, 16, SIDE // 8, SIDE // 8)
    counted = codec_bytes(family, torch.bfloat16, SIDE * SIDE)
    whole = [peak(lambda: vae.encode(image)), peak(lambda: vae.decode(latents))]
    vae.use_tiles(True)
    tiled = [peak(lambda: vae.encode(image)), peak(lambda: vae.decode(latents))]
    figures = ", ".join(f"{size / 1e9:.2f}" for size in (*whole, *tiled))
    record_property(
        "figure", f"{family.info.name} VAE at {SIDE}: encode, decode, in tiles: {figures}; counted {counted / 1e9:.2f}"
    )
    assert max(whole) <= counted
    assert max(tiled) < 0.5 * max(whole)


def test_a_vae_that_runs_out_of_memory_works_in_tiles(codec) -> None:
    family, vae = codec
    latents = torch.randn(1, 16, SIDE // 8, SIDE // 8)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + codec_bytes(family, torch.bfloat16, SIDE * SIDE) // 2
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total, torch.cuda.current_device())
    image = vae.decode(latents)
    assert vae.has_tiled
    assert image.shape == (1, 3, SIDE, SIDE)
    assert torch.isfinite(image).all()
