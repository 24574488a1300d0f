"""Files of Qwen-Image-Edit-2509 and -2511: read in every format, told apart by marker, name and choice."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.errors import BadInput
from trainer.families.registry import find_variant
from trainer.memory.model_parts import ModelComponents
from trainer.models.edit_model import EditModel, open_model
from trainer.models.model_files import ModelFiles
from trainer.quantization.linear import QuantizedLinear
from trainer.single_file.header import open_weights
from trainer.single_file.key_mapping import marker_tensors
from trainer.training.trainable import build_trainable

from ..single_files import FLUX, FORMATS, QWEN, Tensors, stored, write
from .plus_models import EDIT_2509, EDIT_2511, plus_model
from .steps import COLUMNS, plan
from .test_single_file import write_gguf

MARKER = find_variant(EDIT_2511).marker
SIZES = {"num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64}
F32 = torch.float32


@pytest.fixture(scope="module")
def state() -> Tensors:
    torch.manual_seed(0)
    return stored(QWEN, QwenImageTransformer2DModel(**SIZES))


def opened(base_model: str, path: Path) -> EditModel:
    return open_model(base_model, files=ModelFiles(transformer=path))


def refusal(base_model: str, path: Path) -> str:
    with pytest.raises(BadInput) as error:
        opened(base_model, path)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("base_model", [EDIT_2509, EDIT_2511])
def test_every_format_is_read_as_for_the_first_model(state: Tensors, tmp_path: Path, base_model: str, kind: str):
    """That of 2511 with its marker and without."""
    first = opened(QWEN, write(tmp_path / "qwen_image_edit.safetensors", kind, state)).load_transformer("cpu", F32)
    markers = [{}, marker_tensors(MARKER)] if base_model == EDIT_2511 else [{}]
    for marker in markers:
        path = write(tmp_path / f"{base_model.rpartition('/')[2]}.safetensors", kind, state | marker)
        transformer = opened(base_model, path).load_transformer("cpu", F32)
        assert transformer.config["zero_cond_t"] == (base_model == EDIT_2511)
        assert all(block.zero_cond_t == (base_model == EDIT_2511) for block in transformer.transformer_blocks)
        expected = first.state_dict()
        assert transformer.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in transformer.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K"])
def test_gguf_files_are_read_too(state: Tensors, tmp_path: Path, name: str):
    path = write_gguf(tmp_path / "qwen-image-edit-2511.gguf", state, gguf.GGMLQuantizationType[name])
    model = opened(EDIT_2511, path)
    assert model.warnings() == []
    transformer, first = (opened(base, path).load_transformer("cpu", F32) for base in (EDIT_2511, QWEN))
    assert transformer.config["zero_cond_t"]
    assert any(isinstance(layer, QuantizedLinear) for layer in transformer.modules())
    assert all(map(torch.equal, transformer.state_dict().values(), first.state_dict().values()))


def test_a_marked_file_is_2511s_alone(state: Tensors, tmp_path: Path):
    for prefix in ("", "model.diffusion_model."):
        tensors = {prefix + name: tensor for name, tensor in (state | marker_tensors(MARKER)).items()}
        path = write(tmp_path / "mine.safetensors", "bf16", tensors)
        assert opened(EDIT_2511, path).warnings() == [], "whatever its name"
        assert f"not a transformer of {EDIT_2509}: it is {EDIT_2511}; choose that" in refusal(EDIT_2509, path)
        assert "it is Qwen-Image-Edit-2511, which sees its control images in another way" in refusal(QWEN, path)
        assert "it is a Qwen-Image transformer" in refusal(FLUX, path)


def test_other_empty_tensors_are_refused(state: Tensors, tmp_path: Path):
    path = write(tmp_path / "2511.safetensors", "bf16", state | {"img_in.weight": torch.zeros(0, 64)})
    assert "img_in.weight is an empty tensor" in refusal(EDIT_2511, path)
    path = write(tmp_path / "2511.safetensors", "bf16", state | {"__other__": torch.zeros(0)})
    assert "__other__ does not belong there" in refusal(EDIT_2511, path)


@pytest.mark.parametrize(
    ("base_model", "name", "warning"),
    [
        (EDIT_2509, "qwen_image_edit_2509_fp8_e4m3fn.safetensors", None),
        (EDIT_2509, "qwen_image_edit_2511_bf16.safetensors", 'contains "2511"'),
        (EDIT_2509, "qwen_image_edit_fp8.safetensors", '"2509" is not in its name'),
        (EDIT_2509, "FireRed-Image-Edit-1.1.safetensors", '"2509" is not in its name'),
        (EDIT_2511, "qwen_image_edit_2511_bf16.safetensors", None),
        (EDIT_2511, "qwen_image_edit_2509_bf16.safetensors", 'contains "2509"'),
        (EDIT_2511, "qwen_image_2512_bf16.safetensors", 'contains "2512"'),
        (EDIT_2511, "FireRed-Image-Edit-1.1.safetensors", 'contains "firered"'),
        (QWEN, "qwen_image_edit_2509_fp8_e4m3fn.safetensors", 'contains "2509"'),
        (QWEN, "qwen_image_edit_2511_bf16.safetensors", 'contains "2511"'),
        (QWEN, "FireRed-Image-Edit-1.1.safetensors", 'contains "firered"'),
    ],
)
def test_files_of_equal_tensors_are_told_by_their_names(
    state: Tensors, tmp_path: Path, base_model: str, name: str, warning: str | None
):
    doubts = opened(base_model, write(tmp_path / name, "bf16", state)).warnings()
    assert len(doubts) == (warning is not None)
    assert all(warning in said and name in said and base_model in said for said in doubts)


def test_a_folder_of_the_other_is_refused(qwen: EditModel, tmp_path: Path):
    folders = {
        name: plus_model(name, qwen, tmp_path / name.rpartition("-")[2]).folder for name in (EDIT_2509, EDIT_2511)
    }
    for wanted, other in ((EDIT_2509, EDIT_2511), (EDIT_2511, EDIT_2509)):
        with pytest.raises(BadInput, match=f"is not {wanted}: by its config it is {other}; choose that"):
            open_model(wanted, folders[other])
    assert open_model(EDIT_2511, folders[EDIT_2511]).load_transformer("cpu", F32).config["zero_cond_t"]


@pytest.mark.slow
def test_the_published_configs_are_those_of_full_size_files():
    for base_model in (EDIT_2509, EDIT_2511):
        model = open_model(base_model)
        transformer, first = model.empty_transformer(), open_model(QWEN).empty_transformer()
        shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in first.state_dict().items()}
        config = model.family.transformer_config(shapes)
        assert {name: transformer.config[name] for name in config} == config | {"axes_dims_rope": [16, 56, 56]}
        assert model.transformer_parameters() == pytest.approx(20.43e9, rel=1e-3)


def test_a_trained_transformer_of_2511_is_marked(qwen: EditModel, tmp_path: Path):
    model = plus_model(EDIT_2511, qwen, tmp_path / "2511")
    components = ModelComponents(model, torch.device("cpu"), plan())
    trainable = build_trainable(components, TrainingParams(use_lora=False, **COLUMNS), RunSettings())
    trainable.export(tmp_path / "mine.safetensors", torch.bfloat16, {})
    assert open_weights(tmp_path / "mine.safetensors", "transformer").tensors[MARKER].shape == (0,)
    again = model.with_weights(tmp_path / "mine.safetensors").load_transformer("cpu", torch.bfloat16)
    saved = load_file(tmp_path / "mine.safetensors")
    assert again.config["zero_cond_t"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())
