"""Edit Image with the graph's CLIP and VAE, and ComfyUI's own sampler on the same base between two edits."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from ..opened_files import opened_files
from ..single_files import FLUX, FLUX_SIZES, stored, write
from .graphs import Prompt, node
from .server import Server
from .test_kept_model import drawn, edit
from .test_native_model import native, ported

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")

FILE = "kept-kontext.safetensors"
FLAGS_SECONDS = 1.0
"""How long a server that has nothing to do may take for what /free asks."""


@pytest.fixture
def folder(server: Server) -> Iterator[Path]:
    """models/diffusion_models with a narrow Kontext, which is removed at the end."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    file = write(folder / FILE, "bf16", stored(FLUX, FluxTransformer2DModel(**FLUX_SIZES)))
    yield folder
    file.unlink()


def edited(seed: int, **inputs: object) -> Prompt:
    """An edit by the file with a reduced CLIP and VAE, and the names of the models that ComfyUI has loaded then."""
    return edit(seed, **inputs) | ported(FLUX, FILE)


def sampled(version: tuple[int, ...]) -> Prompt:
    """ComfyUI's sampler on the same base, and the names of the models that are loaded then; they are unloaded."""
    opens_small_flux = version >= (0, 33)
    own = {"seed": 3, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    own |= {"positive": ["reference", 0], "negative": ["reference", 0], "latent_image": ["latent", 0]}
    return ported(FLUX, FILE) | {
        "native": native("model") if opens_small_flux else node("OracleFileModel", model=["model", 0]),
        "sampler": node("KSampler", model=["native", 0], **own),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "loaded": node("OracleUnload", after=["decoded", 0]),
    }


def asked_to_free(server: Server, **flags: bool) -> None:
    server.post("/free", flags)
    time.sleep(FLAGS_SECONDS)


def test_an_edit_after_comfyuis_sampler_reads_no_weights(
    server: Server, folder: Path, version: tuple[int, ...]
) -> None:
    with opened_files(folder) as opened:
        first = drawn(server, edited(1))[1]
    assert opened == {FILE}
    result = server.run(sampled(version))
    assert result.status == "execution_success", result.details
    assert {"EditTrainerModel", "Flux", "AutoencodingEngine"} <= set(result.text("loaded").split())
    with opened_files(folder) as opened:
        assert drawn(server, edited(2))[1] != first
        asked_to_free(server, unload_models=True)
        assert drawn(server, edited(1))[1] == first
    assert not opened
    asked_to_free(server, unload_models=True, free_memory=True)
    with opened_files(folder) as opened:
        assert drawn(server, edited(1))[1] == first
    assert opened == {FILE}, "ComfyUI has forgotten the EDIT_MODEL"


def test_the_graphs_clip_and_vae_are_used_where_comfyui_has_them(server: Server, folder: Path) -> None:
    loaded = {"loaded": node("OracleUnload", after=["edit", 0])}
    result, first = drawn(server, edited(1) | loaded)
    assert set(result.text("loaded").split()) == {"EditTrainerModel", "SmallFluxClip", "AutoencodingEngine"}
    with opened_files(server.base / "models") as opened:
        result, other = drawn(server, edited(1, prompt="paint it red") | loaded)
        assert drawn(server, edited(1) | loaded)[1] == first
    assert set(result.text("loaded").split()) == {"EditTrainerModel", "SmallFluxClip", "AutoencodingEngine"}
    assert not opened
    assert other != first
    prompt = edited(1)
    prompt["clip"]["inputs"]["seed"] = 1
    assert drawn(server, prompt)[1] != first, "another CLIP sees another text"
