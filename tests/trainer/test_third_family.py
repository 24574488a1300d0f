"""A family costs one module, one record and one configs folder: a made-up one, registered from here, is known
everywhere and taken for no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from trainer.cli.main import main
from trainer.config.request import FineTuneRequest, parse_request
from trainer.errors import BadInput
from trainer.families.registry import FAMILIES, base_model_names
from trainer.lora.adapter import read_lora
from trainer.models.edit_model import EditModel, open_model
from trainer.models.model_files import ModelFiles

from ..single_files import FLUX, FLUX_SIZES, QWEN, stored, write
from ..third_family import INFO, TRIO, Trio
from .klein_models import KLEIN_4B, KLEIN_9B

REQUEST = {
    "resource": "edits.parquet",
    "base_model": TRIO,
    "script_type": "image_editing",
    "training_params": {"caption_column": "c", "control_image_column": "i", "image_column": "o"},
}


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The family among the others, with a configs folder that describes a small transformer."""
    configs = tmp_path / "configs"
    shutil.copytree(INFO.configs, configs)
    path = configs / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | FLUX_SIZES))
    info = replace(INFO, configs=configs)
    monkeypatch.setattr(Trio, "info", info)
    FAMILIES.append(info)
    yield
    FAMILIES.remove(info)


def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(**FLUX_SIZES)


def file_of(base_model: str, path: Path) -> ModelFiles:
    """A transformer file of a base model."""
    return ModelFiles(transformer=write(path, "fp32", stored(base_model, transformer())))


def refusal(base_model: str, files: ModelFiles) -> str:
    with pytest.raises(BadInput) as error:
        open_model(base_model, files=files)
    return str(error.value)


def test_its_base_model_is_offered_and_accepted() -> None:
    later = [f"{QWEN}-2509", f"{QWEN}-2511"]
    embedded = ["tiny/flux-kontext", "tiny/flux2-klein", "tiny/qwen-image-edit", "tiny/qwen-image-edit-plus"]
    assert base_model_names() == [QWEN, *later, FLUX, KLEIN_4B, KLEIN_9B, TRIO, *embedded]
    assert FineTuneRequest.model_json_schema()["properties"]["base_model"]["enum"] == base_model_names()
    assert parse_request(REQUEST).base_model == TRIO
    with pytest.raises(BadInput, match=TRIO):
        parse_request(REQUEST | {"base_model": "example/Quartet"})


def test_it_is_unknown_without_its_record() -> None:
    info = FAMILIES.pop()
    try:
        with pytest.raises(BadInput, match="is not one of"):
            parse_request(REQUEST)
        with pytest.raises(BadInput, match="is not known"):
            open_model(TRIO)
    finally:
        FAMILIES.append(info)


@pytest.mark.slow
def test_a_training_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    assert main(["plan", str(tmp_path / "request.json"), "--vram", "8"]) == 0
    assert capsys.readouterr().out.startswith(f"{TRIO} in ")


def test_its_file_is_its_own_and_no_others(tmp_path: Path) -> None:
    own, flux = file_of(TRIO, tmp_path / "trio.safetensors"), file_of(FLUX, tmp_path / "kontext.safetensors")
    model = open_model(TRIO, files=own)
    loaded = model.load_transformer("cpu", torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in transformer().state_dict().items())
    for other in (FLUX, QWEN):
        assert "it is a Trio transformer" in refusal(other, own)
    assert "it is a Flux transformer" in refusal(TRIO, flux)


def test_names_of_files_are_compared_with_its_own(tmp_path: Path) -> None:
    def warnings(name: str) -> list[str]:
        return open_model(TRIO, files=file_of(TRIO, tmp_path / name)).warnings()

    assert warnings("trio.safetensors") == []
    assert '"quartet"' in warnings("trio-quartet.safetensors")[0]
    assert '"trio" is not in its name' in warnings("kontext.safetensors")[0]


def lora_of(block: str) -> dict[str, torch.Tensor]:
    """A LoRA of a fused attention layer, under the single file's names."""
    width = FLUX_SIZES["num_attention_heads"] * 128
    module = f"diffusion_model.{block}.0.img_attn.qkv"
    return {f"{module}.lora_A.weight": torch.ones(2, width), f"{module}.lora_B.weight": torch.ones(3 * width, 2)}


def test_its_lora_is_its_own_and_no_others(kontext: EditModel, qwen: EditModel) -> None:
    trio = open_model(TRIO)
    portable = read_lora(lora_of("duet_blocks"), trio.family, trio.empty_transformer())
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in portable
    for other in (kontext, qwen):
        with pytest.raises(BadInput, match="it is a LoRA of Trio with"):
            read_lora(lora_of("duet_blocks"), other.family, other.empty_transformer())
    with pytest.raises(BadInput, match=r"it is a LoRA of Flux with .* a LoRA of Trio is expected"):
        read_lora(lora_of("double_blocks"), trio.family, trio.empty_transformer())


def test_its_encoders_and_its_guidance_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())
    assert (
        "Trio:CLIP-Ltextencoder" in text and "Qwen-Image-Edit-2509/2511,FLUX.2[klein],Trioonly" in text and TRIO in text
    )
