"""Single files of FLUX.2 [klein]: read in every format, and told from the other models of their kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import load_file

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.data.resize import Size
from trainer.errors import BadInput
from trainer.events import drain
from trainer.inference import edit
from trainer.memory.model_parts import ModelComponents
from trainer.models.edit_model import EditModel, open_model
from trainer.models.model_files import ModelFiles
from trainer.quantization.linear import QuantizedLinear, dequantize_layers
from trainer.single_file.key_mapping import to_stored
from trainer.training.trainable import build_trainable

from ..single_files import FLUX, FORMATS, KLEIN_SIZES, Tensors, stored, write
from .conftest import Runs
from .klein_models import KLEIN_4B, KLEIN_9B, klein_model
from .steps import COLUMNS, plan
from .test_single_file import write_gguf

BOTH = [KLEIN_4B, KLEIN_9B]
F32 = torch.float32


@pytest.fixture(scope="module")
def transformer() -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(**KLEIN_SIZES)
    for parameter in transformer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, 1.0, 0.1)  # norms that are all alike would hide a mix-up
    return transformer.requires_grad_(False)


@pytest.fixture(scope="module")
def state(transformer: Flux2Transformer2DModel) -> Tensors:
    return stored(KLEIN_4B, transformer)


def opened(path: Path, base_model: str = KLEIN_4B) -> EditModel:
    return open_model(base_model, files=ModelFiles(transformer=path))


def refusal(path: Path, base_model: str = KLEIN_4B) -> str:
    with pytest.raises(BadInput) as error:
        opened(path, base_model)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_weights_that_were_written(state: Tensors, tmp_path: Path, kind: str):
    path = write(tmp_path / "flux-2-klein-base-4b.safetensors", kind, state)
    loaded = opened(path).load_transformer("cpu", F32)
    quantized = [layer for layer in loaded.modules() if isinstance(layer, QuantizedLinear)]
    assert bool(quantized) != kind.startswith(("fp32", "bf16", "fp16")), "quantized weights stay as stored"
    dequantize_layers(loaded, F32)
    tolerance = {"fp32": 0.0, "fp16": 1e-3, "bf16": 4e-3, "comfy_quant e5m2": 0.1}.get(kind.split(",")[0], 0.05)
    found = stored(KLEIN_4B, loaded)
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        error = torch.linalg.vector_norm(tensor - state[name]) / torch.linalg.vector_norm(state[name])
        assert error <= tolerance, f"{name} {error}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K"])
def test_gguf_files_are_read_too(state: Tensors, transformer: torch.nn.Module, tmp_path: Path, name: str):
    path = write_gguf(tmp_path / "flux-2-klein-base-4b.gguf", state, gguf.GGMLQuantizationType[name])
    loaded = opened(path).load_transformer("cpu", F32)
    assert any(isinstance(layer, QuantizedLinear) for layer in loaded.modules())
    for own, tensor in loaded.state_dict().items():
        if "norm_q" in own:
            assert torch.equal(tensor, transformer.state_dict()[own])


def test_our_layout_is_the_one_diffusers_reads(transformer: torch.nn.Module):
    """diffusers' own converter, in whole numbers."""
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randint(-128, 128, tensor.shape, generator=draw, dtype=torch.int8)
        for name, tensor in transformer.state_dict().items()
    }
    layout = open_model(KLEIN_4B).family.layout(transformer)
    read = convert_flux2_transformer_checkpoint_to_diffusers(dict(to_stored(layout, state)))
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize(("base_model", "parameters"), [(KLEIN_4B, 3.88e9), (KLEIN_9B, 9.08e9)])
def test_the_published_configs_are_those_of_full_size_files(base_model: str, parameters: float):
    model = open_model(base_model)
    transformer = model.empty_transformer()
    layout = model.family.layout(transformer)
    file = dict(to_stored(layout, transformer.state_dict()))
    names = [f"{module}.{leaf}" for fused in layout for module in fused.modules for leaf in ("weight",)]
    assert sorted(names) == sorted(transformer.state_dict())
    assert sum(tensor.numel() for tensor in file.values()) == model.transformer_parameters()
    assert model.transformer_parameters() == pytest.approx(parameters, rel=0.01)
    shapes = {name: tuple(tensor.shape) for name, tensor in file.items()}
    config = model.family.transformer_config(shapes)
    known = {**transformer.config, "out_channels": transformer.config["out_channels"] or 128}
    assert config == {name: known[name] for name in config}
    assert model.family.other_model(shapes) is None
    other = open_model(next(name for name in BOTH if name != base_model))
    assert other.family.other_model(shapes) == f"{base_model}; choose that as base_model"


def test_a_folder_of_the_other_size_is_refused(tmp_path: Path):
    for wanted, other in (BOTH, BOTH[::-1]):
        folder = tmp_path / other
        shutil.copytree(open_model(other).family.configs, folder)
        (folder / "model_index.json").write_text("{}", encoding="utf-8")
        with pytest.raises(BadInput, match=f"is not {wanted}: by its config it is {other}; choose that"):
            open_model(wanted, folder)
        assert open_model(other, folder).transformer_parameters() == open_model(other).transformer_parameters()
    assert klein_model(tmp_path / "another size").folder == tmp_path / "another size"


def test_the_text_encoders_published_configs_fit_the_transformers():
    for base_model in BOTH:
        family = open_model(base_model).family
        parts = ("transformer", "text_encoder")
        transformer, encoder = (json.loads((family.configs / part / "config.json").read_text()) for part in parts)
        assert transformer["joint_attention_dim"] == 3 * encoder["hidden_size"]


def test_dev_is_refused_by_name(state: Tensors, tmp_path: Path):
    width = KLEIN_SIZES["num_attention_heads"] * 128
    inputs = {"in_layer": 256, "out_layer": width}
    guidance = {f"guidance_in.{layer}.weight": torch.ones(width, columns) for layer, columns in inputs.items()}
    for base_model in BOTH:
        said = refusal(write(tmp_path / "flux2_dev.safetensors", "bf16", state | guidance), base_model)
        assert f"is not a transformer of {base_model}: it is FLUX.2 [dev]" in said
        assert "klein alone can be trained" in said


def test_files_of_other_families_are_told_apart(state: Tensors, tmp_path: Path):
    path = write(tmp_path / "klein.safetensors", "bf16", state)
    assert "it is a FLUX.2 transformer" in refusal(path, FLUX)
    assert "it is a FLUX.2 transformer" in refusal(path, "Qwen/Qwen-Image-Edit")
    wrong = {name.replace("double_stream_modulation_img", "another"): tensor for name, tensor in state.items()}
    assert "it is a Flux transformer" in refusal(write(tmp_path / "flux.safetensors", "bf16", wrong))


def test_a_full_fine_tune_is_a_single_file(tmp_path: Path):
    model = klein_model(tmp_path / "klein")
    components = ModelComponents(model, torch.device("cpu"), plan())
    trainable = build_trainable(components, TrainingParams(use_lora=False, **COLUMNS), RunSettings())
    trainable.export(tmp_path / "mine.safetensors", torch.bfloat16, {})
    saved = load_file(tmp_path / "mine.safetensors")
    assert {name.partition(".")[0] for name in saved} >= {"double_blocks", "single_blocks", "single_stream_modulation"}
    again = model.with_weights(tmp_path / "mine.safetensors").load_transformer("cpu", torch.bfloat16)
    expected = model.load_transformer("cpu", torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    alone = opened(tmp_path / "mine.safetensors").load_transformer("cpu", torch.bfloat16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in alone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("flux-2-klein-base-4b-fp8.safetensors", None),
        ("FLUX.2-klein-base-4B-Q4_K_M.safetensors", None),
        ("flux-2-klein-4b.safetensors", "is a distilled model"),
        ("flux2_klein_4b_fp8mixed.safetensors", "is a distilled model"),
        ("mine.safetensors", '"klein" is not in its name'),
    ],
)
def test_a_distilled_file_is_known_by_its_name(state: Tensors, tmp_path: Path, name: str, warning: str | None):
    doubts = opened(write(tmp_path / name, "bf16", state)).warnings()
    assert len(doubts) == (warning is not None)
    assert all(warning in said and name in said and KLEIN_4B in said for said in doubts)


def test_a_distilled_folder_is_known_by_its_index(tmp_path: Path):
    folder = tmp_path / "klein"
    assert klein_model(folder).warnings() == []
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    assert index["is_distilled"] is False
    path.write_text(json.dumps(index | {"is_distilled": True}), encoding="utf-8")
    (warning,) = klein_model(folder).warnings()
    assert "is a distilled model" in warning and KLEIN_4B in warning


@pytest.mark.slow
def test_the_text_encoder_of_another_size_is_refused(klein: EditModel, state: Tensors, runs: Runs, tmp_path: Path):
    path = write(tmp_path / "flux-2-klein-base-4b.safetensors", "bf16", state)
    model = open_model(KLEIN_4B, klein.folder, files=ModelFiles(transformer=path))
    words = "The text encoder gives 96 channels and the transformer of .* takes 192"
    with pytest.raises(BadInput, match=words):
        drain(edit(model, Image.new("RGB", (64, 64)), "make it red", steps=1, guidance=1.0, size=Size(64, 64)))
    with pytest.raises(BadInput, match=words):
        runs.run(model, settings={"resolution": 64}, sample_width=64, sample_height=64)
