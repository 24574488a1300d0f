"""A LoRA file has the strength that it was made with, or a notice says that it is not known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.config.settings import parse_settings
from trainer.errors import BadInput
from trainer.lora.adapter import load_lora, lora_notes, of_one_rank, read_lora
from trainer.lora.init_lora import open_init_lora

from .lora_files import Tensors, portable, random_pairs
from .test_lora_formats import deltas, empty, merged, relative, velocity

PEFT = "base_model.model."


def first_pair(model) -> Tensors:
    """A LoRA of one module, without alpha."""
    return portable(random_pairs(empty(model), r"transformer_blocks\.0\.attn\.to_out\.0"))


def scale_of(model, path: Path) -> float:
    """How much stronger a file of `first_pair` is read than B·A."""
    (read,) = deltas(read_lora(path, model.family, empty(model))).values()
    (plain,) = deltas(first_pair(model)).values()
    return (read.norm() / plain.norm()).item()


def peft_file(model, folder: Path, name: str = "adapter_model.safetensors") -> Path:
    state = {key.replace("transformer.", PEFT, 1): tensor for key, tensor in first_pair(model).items()}
    save_file(state, folder / name)
    return folder / name


@pytest.mark.parametrize(
    "config, scale",
    [
        ({"r": 4, "lora_alpha": 16}, 4.0),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"MODULE": 2}}, 0.5),
        ({"r": 4}, 1.0),
    ],
)
def test_pefts_configuration_beside_its_file_is_followed(kontext, tmp_path, config, scale):
    module = next(iter(first_pair(kontext))).removeprefix("transformer.").rpartition(".lora_")[0]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config).replace("MODULE", module))
    path = peft_file(kontext, tmp_path)
    assert scale_of(kontext, path) == pytest.approx(scale)
    assert lora_notes(path) == []
    other = peft_file(kontext, tmp_path, "other.safetensors")
    assert scale_of(kontext, other) == pytest.approx(1.0), "another file in the folder"


def test_a_scale_that_is_not_known_is_said(kontext, tmp_path):
    (note,) = lora_notes(peft_file(kontext, tmp_path))
    assert note.startswith("adapter_model.safetensors: its scale is not known, and 1 is used")
    assert "adapter_config.json" in note
    assert lora_notes(first_pair(kontext)) == []


@pytest.mark.parametrize(
    "header, scale",
    [
        ({"lora_alpha": "16", "r": "4"}, 4.0),
        ({"lora_alpha": "16.0", "use_rslora": "True"}, 8.0),
        ({"edit_trainer.alpha": "16"}, 1.0),
        ({"format": "pt"}, 1.0),
    ],
)
def test_an_alpha_in_the_header_is_read(kontext, tmp_path, header, scale):
    save_file(first_pair(kontext), tmp_path / "lora.safetensors", header)
    assert scale_of(kontext, tmp_path / "lora.safetensors") == pytest.approx(scale)


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": NaN}', '{"lora_alpha": "x"}', "\x00" * 2_000_000, ""])
def test_a_damaged_configuration_is_refused(kontext, tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(BadInput, match=r"adapter_(model|config)"):
        read_lora(peft_file(kontext, tmp_path), kontext.family, empty(kontext))


def test_the_configuration_belongs_to_the_runs_identity(kontext, runs):
    path = peft_file(kontext, runs.folder)
    fingerprints = set()
    for alpha in (None, 4, 8):
        if alpha:
            (runs.folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        settings = parse_settings({"init_lora": str(path), "lora_targets": "all-linear"})
        opened = open_init_lora(kontext, runs.request(kontext).training_params, settings)
        assert opened is not None
        fingerprints.add(opened.fingerprint)
    assert len(fingerprints) == 3


@pytest.mark.slow
def test_mixed_ranks_without_alpha_have_their_own_strength(model):
    pairs = random_pairs(empty(model), model.family.lora_targets("attention", empty(model)))
    mixed = {name: (a[: 1 + n % 4], b[:, : 1 + n % 4]) for n, (name, (a, b)) in enumerate(pairs.items())}
    padded = of_one_rank(portable(mixed))
    assert {tensor.shape[0] for name, tensor in padded.items() if "lora_A" in name} == {4}
    transformer = model.load_transformer("cpu", torch.float32)
    load_lora(transformer, model.family, portable(mixed))
    expected = velocity(model, merged(model, mixed))
    assert relative(velocity(model, transformer), expected) < 1e-5
    assert all(module.scaling["default"] == 1 for module in transformer.modules() if hasattr(module, "lora_A"))


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_refused_with_their_name(kontext, tmp_path, half, value, dtype):
    state: Tensors = {name: tensor.to(dtype) for name, tensor in first_pair(kontext).items()}
    name = next(name for name in state if half in name)
    state[name][1, 1] = value
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(BadInput, match=rf"lora\.safetensors is damaged.*: {name} has values that are not finite"):
        read_lora(tmp_path / "lora.safetensors", kontext.family, empty(kontext))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 3e38])
def test_alphas_that_are_not_finite_are_refused(kontext, alpha):
    state = first_pair(kontext)
    module = next(iter(state)).rpartition(".lora_")[0]
    state = {name: tensor * 100 for name, tensor in state.items()} | {f"{module}.alpha": torch.tensor(alpha)}
    assert len(state) == 3
    with pytest.raises(BadInput, match="finite"):
        read_lora(state, kontext.family, empty(kontext))


def test_embeddings_of_new_words_are_left_out_and_that_is_said(kontext, tmp_path):
    state = first_pair(kontext) | {
        "bundle_emb.word.string_to_param.*": torch.ones(2, 8),
        "bundle_emb.x.clip_l": torch.ones(1, 8),
    }
    save_file(state, tmp_path / "lora.safetensors")
    assert read_lora(tmp_path / "lora.safetensors", kontext.family, empty(kontext)).keys() == first_pair(kontext).keys()
    assert lora_notes(tmp_path / "lora.safetensors") == ["lora.safetensors: 2 tensors for text encoders are ignored."]
