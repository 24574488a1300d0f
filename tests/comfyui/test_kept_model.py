"""Edit Image keeps its model: what is read again, what ComfyUI's memory management and its options do with it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ..opened_files import opened_files
from .conftest import TEST_PACK
from .graphs import Prompt, node, training
from .server import PACK, Result, Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts opened files by inotify")

FLUX = "black-forest-labs/FLUX.1-Kontext-dev"
OPTIONS = (("--disable-smart-memory", "--cache-classic"), ("--cache-none",))
"""Those that go with --cpu, by server."""
START_SECONDS = 1.0
STEPS = 3
"""Sampler steps of the edit whose start is timed."""
ALTERNATIONS = 8
ALLOWED = 80 * 2**20
"""Bytes that the server may grow by in all alternations but the first two: less than one of the models each."""


@pytest.fixture
def folder(server: Server) -> Iterator[Path]:
    """An embedded model in models/diffusers, which no other test reads, removed at the end."""
    yield (folder := copied(server))
    shutil.rmtree(folder)


def copied(server: Server, name: str = "kept") -> Path:
    return shutil.copytree(PACK / "trainer" / "tiny" / "flux-kontext", server.base / "models" / "diffusers" / name)


def edit(seed: int, model: str = "model", transformer: str = "diffusers/kept", **inputs: object) -> Prompt:
    """An edit by a model in models/diffusers; the seed tells it from others."""
    own = {"negative_prompt": "", "guidance": 0.0, "width": 64, "height": 64, "lora_strength": 1.0, "steps": 1}
    own |= {"prompt": "paint it blue", "seed": seed}
    return {
        "model": node("EditTrainerBaseModel", base_model=FLUX, transformer=transformer),
        "image": node("EmptyImage", width=64, height=64, batch_size=1, color=0x3080F0),
        "edit": node("EditTrainerEditImage", model=[model, 0], image=["image", 0], **own | inputs),
        "saved": node("SaveImage", images=["edit", 0], filename_prefix="kept"),
    }


def drawn(server: Server, prompt: Prompt) -> tuple[Result, bytes]:
    """The result of an edit, and the pixels of its image."""
    result = server.run(prompt)
    assert result.status == "execution_success", result.details
    (image,) = result.outputs["saved"]["images"]
    return result, Image.open(server.output / image["filename"]).tobytes()


def start_seconds(result: Result) -> float:
    """Seconds from the start of the edit to its first step."""
    start = next(time for time, kind, data in result.messages if kind == "executing" and data["node"] == "edit")
    steps = [time for time, kind, data in result.messages if kind == "progress" and data["max"] == STEPS]
    return next(time for time in steps if time > start) - start


@pytest.fixture
def lora(server: Server) -> Iterator[Path]:
    """A trained LoRA in a folder of its own."""
    trained = server.run(training(run_name="kept-lora", params={"learning_rate": 0.02}))
    assert trained.status == "execution_success", trained.details
    source = server.output / "loras" / "kept-lora-000004.safetensors"
    target = server.base / "models" / "loras" / "kept" / "other.safetensors"
    target.parent.mkdir(parents=True)
    yield shutil.copyfile(source, target)
    shutil.rmtree(target.parent)


def test_another_prompt_reads_nothing_and_starts_at_once(server: Server, folder: Path) -> None:
    with opened_files(folder) as opened:
        drawn(server, edit(1))
    assert opened
    with opened_files(folder) as opened:
        result, blue = drawn(server, edit(2, steps=STEPS))
        red = drawn(server, edit(2, steps=STEPS, prompt="paint it red"))[1]
    assert not opened
    assert blue != red
    assert start_seconds(result) < START_SECONDS


def test_of_another_lora_only_its_file_is_read(server: Server, folder: Path, lora: Path) -> None:
    plain = drawn(server, edit(1))[1]
    with opened_files(folder, lora.parent) as opened:
        worn = drawn(server, edit(1, lora_name="kept/other.safetensors"))[1]
    assert opened == {lora.name}
    with opened_files(folder, lora.parent) as opened:
        half = drawn(server, edit(1, lora_name="kept/other.safetensors", lora_strength=0.5))[1]
        again = drawn(server, edit(1))[1]
    assert not opened
    assert len({plain, worn, half}) == 3
    assert again == plain


def test_a_model_that_was_unloaded_comes_back_from_host_memory(server: Server, folder: Path) -> None:
    unloaded = {"loaded": node("OracleUnload", after=["edit", 0])}
    first, image = drawn(server, edit(1) | unloaded)
    with opened_files(folder) as opened:
        second = drawn(server, edit(2) | unloaded)[0]
        assert drawn(server, edit(1) | unloaded)[1] == image
    assert not opened
    assert first.text("loaded") == second.text("loaded") == "EditTrainerModel"


def test_a_cancelled_edit_leaves_the_model(server: Server, folder: Path) -> None:
    first = drawn(server, edit(1))[1]

    def cancel(kind: str, data: dict) -> None:
        if kind == "progress" and data["max"] == 1000:
            server.interrupt()

    assert server.run(edit(1, steps=1000), cancel).status == "execution_interrupted"
    with opened_files(folder) as opened:
        drawn(server, edit(3))
        assert drawn(server, edit(1))[1] == first
    assert not opened


def test_two_models_in_turn_take_no_more_memory(server: Server, folder: Path) -> None:
    other = copied(server, "kept-too")
    try:
        sizes, tensors = [], []
        for number in range(ALTERNATIONS):
            prompt = edit(number, transformer=f"diffusers/{('kept', 'kept-too')[number % 2]}")
            prompt["live"] = node("OracleLiveBytes", after=["edit", 0])
            tensors.append(int(drawn(server, prompt)[0].text("live")))
            sizes.append(server.memory())
        assert sizes[-1] - sizes[1] < ALLOWED, [size >> 20 for size in sizes]
        assert max(tensors[2:]) <= max(tensors[:2]), tensors
    finally:
        shutil.rmtree(other)


def test_a_trained_model_is_not_loaded_again(server: Server) -> None:
    trained = training(run_name="kept-training", params={"learning_rate": 0.02})
    loads = {"loads": node("OracleLoads", after=["edit", 0])}

    def after_training(**inputs: object) -> Prompt:
        parts = edit(1, "train", **inputs)
        return trained | {name: part for name, part in parts.items() if name != "model"} | loads

    begin = int(server.run({"loads": node("OracleLoads", after=["image", 0]), "image": edit(1)["image"]}).text("loads"))
    result = server.run(trained)
    assert result.status == "execution_success", result.details
    result, image = drawn(server, after_training())
    assert int(result.text("loads")) - begin == 1, "the training's"
    fresh = trained | edit(1, lora=["train", 1]) | loads
    fresh["model"]["inputs"]["base_model"] = "tiny/flux-kontext"
    fresh["model"]["inputs"]["transformer"] = "auto"
    assert drawn(server, fresh)[1] == image


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options_of_comfyui_change_no_image(
    server: Server, comfyui: Path, folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    edits = [edit(1), edit(1, prompt="paint it red"), edit(1)]
    images = [drawn(server, each)[1] for each in edits]
    other = Server(comfyui, tmp_path, TEST_PACK, options=options)
    try:
        weights = copied(other)
        drawn(other, edit(9))
        with opened_files(weights) as opened:
            assert [drawn(other, each)[1] for each in edits] == images
        assert bool(opened) == ("--cache-none" in options)
    finally:
        other.close()
