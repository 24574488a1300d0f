"""Other people's LoRAs: every way of writing one gives the same tensors, and what is something else is refused."""

import json

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel, QwenImageEditPipeline, QwenImageTransformer2DModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

from trainer.errors import BadInput
from trainer.events import Notice
from trainer.inference import edit
from trainer.lora.adapter import ignored_tensors_note, load_lora
from trainer.lora.formats import file_scales, linear_targets, to_portable
from trainer.models.types import Grid, PackedLatents
from trainer.tensors import write_tensors

from .conftest import shape_picture
from .lora_files import RANK, every_format, kohya, launched_processes, portable, random_pairs

NAMES = [
    "ours",
    "bare",
    "peft",
    "raw peft",
    "no weight",
    "kohya",
    "comfyui",
    "checkpoint",
    "file's names",
    "file's names, peft",
    "onetrainer",
    "lycoris",
    "dotted with alpha",
    "old diffusers",
]


def empty(model):
    return model.empty_transformer()


def velocity(model, transformer) -> torch.Tensor:
    """One forward pass on random tokens and text."""
    generator = torch.Generator().manual_seed(2)
    config = empty(model).config
    channels, width = config["in_channels"], config["joint_attention_dim"]
    image, control = (PackedLatents(torch.randn(1, 16, channels, generator=generator), Grid(4, 4)) for _ in range(2))
    text = {"prompt_embeds": torch.randn(1, 6, width, generator=generator)}
    if model.family.info.name == "flux-kontext":
        text["pooled_prompt_embeds"] = torch.randn(1, 32, generator=generator)
    with torch.no_grad():
        return model.family.predict(transformer, image, [control], text, torch.tensor([0.6]), 2.0)


def merged(model, pairs, scale: float = 1.0):
    transformer = model.load_transformer("cpu", torch.float32)
    for name, (a, b) in pairs.items():
        transformer.get_submodule(name).weight.data += scale * b @ a
    return transformer


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()


def deltas(state, prefix: str = "transformer.") -> dict[str, torch.Tensor]:
    return {
        name.removesuffix(".lora_A.weight"): state[name.replace("lora_A", "lora_B")] @ state[name]
        for name in state
        if name.startswith(prefix) and name.endswith("lora_A.weight")
    }


def effects(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each module's delta makes of eight random inputs: at full width the deltas have gigabytes."""
    found = {}
    for name, down in state.items():
        if name.endswith("lora_A.weight"):
            inputs = torch.randn(down.shape[1], 8, generator=torch.Generator().manual_seed(0))
            found[name.removesuffix(".lora_A.weight")] = state[name.replace("lora_A", "lora_B")] @ (down @ inputs)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_tensors(model, name):
    transformer = empty(model)
    pairs = random_pairs(transformer)
    formats = every_format(pairs, model.family, transformer)
    assert list(formats) == NAMES
    found = to_portable(formats[name], model.family, transformer, "it")
    expected = portable(pairs)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "kohya", "comfyui", "file's names"])
def test_what_is_drawn_with_it_is_what_the_merged_weights_draw(model, name):
    transformer = model.load_transformer("cpu", torch.float32)
    pairs = random_pairs(transformer)
    state = every_format(pairs, model.family, transformer)[name]
    plain = velocity(model, transformer)
    load_lora(transformer, model.family, state, 0.5)
    expected = velocity(model, merged(model, pairs, 0.5))
    assert relative(velocity(model, transformer), expected) < 1e-5
    assert relative(plain, expected) > 1e-2


def test_a_joined_module_with_one_a_for_all_parts(kontext):
    """As kohya trains it: B is full, and every part keeps the whole rank."""
    transformer = empty(kontext)
    generator = torch.Generator().manual_seed(3)
    target = linear_targets(kontext.family, transformer)["single_blocks_0_linear1"]
    a = torch.randn(RANK, target.columns, generator=generator)
    b = torch.randn(sum(target.rows), RANK, generator=generator)
    state = {"lora_unet_single_blocks_0_linear1.lora_down.weight": a}
    state["lora_unet_single_blocks_0_linear1.lora_up.weight"] = b
    found = to_portable(state, kontext.family, transformer, "it")
    assert len(found) == 2 * len(target.modules) == 8
    full_tensor = torch.cat([found[f"transformer.{name}.lora_B.weight"] for name in target.modules])
    assert torch.equal(full_tensor, b)
    assert all(torch.equal(found[f"transformer.{name}.lora_A.weight"], a) for name in target.modules)


@pytest.mark.slow
@pytest.mark.parametrize("with_prefix", [True, False])
def test_diffusers_note_of_the_alphas_is_followed(model, tmp_path, with_prefix):
    transformer = model.load_transformer("cpu", torch.float32)
    targets = model.family.lora_targets("attention+mlp", transformer)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        alpha_pattern={"transformer_blocks.1.attn.to_q": 2},
        rank_pattern={"to_k": 2},
    )
    transformer.add_adapter(config)
    generator = torch.Generator().manual_seed(4)
    for parameter in (p for p in transformer.parameters() if p.requires_grad):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    expected = velocity(model, transformer)
    if with_prefix:
        pipeline = FluxKontextPipeline if model.family.info.name == "flux-kontext" else QwenImageEditPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(transformer))
        note = {"transformer_lora_adapter_metadata": transformer.peft_config["default"].to_dict()}
        pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **note)
    else:
        transformer.save_lora_adapter(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        assert "lora_adapter_metadata" in opened.metadata()
        names = list(opened.keys())
    assert any(name.startswith("transformer.") for name in names) == with_prefix
    again = model.load_transformer("cpu", torch.float32)
    load_lora(again, model.family, file)
    assert relative(velocity(model, again), expected) < 1e-5


FULL_WIDTH = {
    "kontext": lambda: FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True),
    "qwen": lambda: QwenImageTransformer2DModel(num_layers=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("name", FULL_WIDTH)
def test_the_same_as_diffusers_converters_make_of_it(request, name, prefix):
    """At the published models' width, which theirs are made for."""
    family = request.getfixturevalue(name).family
    with torch.device("meta"):
        transformer = FULL_WIDTH[name]()
    pairs = random_pairs(transformer, r".*transformer_blocks\..*", rank=2)
    state = kohya(launched_processes(pairs, family, transformer), prefix, flat=prefix == "lora_unet_")
    pipeline = FluxKontextPipeline if name == "kontext" else QwenImageEditPipeline
    theirs = effects(pipeline.lora_state_dict(dict(state)))
    ours = effects(to_portable(state, family, transformer, "it"))
    assert ours.keys() == theirs.keys()
    for key, effect in ours.items():
        assert relative(effect, theirs[key]) < 1e-6, key


@pytest.mark.parametrize("build", FULL_WIDTH)
def test_no_two_modules_share_a_name(request, build):
    family = request.getfixturevalue(build).family
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True) if build == "kontext" else FULL_WIDTH[build]()
    linears = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = linear_targets(family, transformer)
    assert {name for target in targets.values() for name in target.modules} == linears
    meant = {name: (name,) for name in linears}
    meant |= {stack.stored: stack.modules for stack in family.layout(transformer) if linears.issuperset(stack.modules)}
    for name, modules in meant.items():
        assert targets[name].modules == targets[name.replace(".", "_")].modules == modules


def first_pair(model) -> dict[str, torch.Tensor]:
    """A LoRA of one module in kohya's form."""
    transformer = empty(model)
    pairs = random_pairs(transformer, r"transformer_blocks\.0\.attn\.to_out\.0")
    return kohya(launched_processes(pairs, model.family, transformer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("oft_blocks", "OFT"),
        ("lora_mid.weight", "convolutions"),
        ("lora_B.bias", "biases"),
        ("diff", "diff"),
        ("diff_b", "diff"),
    ],
)
def test_other_kinds_are_refused_by_name(model, suffix, kind):
    state = first_pair(model)
    module = next(iter(state)).partition(".")[0]
    for tensors in (state, {}):
        with pytest.raises(BadInput, match=kind):
            to_portable(tensors | {f"{module}.{suffix}": torch.ones(2)}, model.family, empty(model), "it")


def test_differences_of_zero_change_nothing(model):
    state = first_pair(model)
    found = to_portable(state | {"lora_unet_x.diff_b": torch.zeros(4)}, model.family, empty(model), "it")
    assert found.keys() == to_portable(state, model.family, empty(model), "it").keys()


OTHERS = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "Stable Diffusion",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion",
    "diffusion_model.joint_blocks.0.x_block.attn.qkv": "Stable Diffusion 3",
    "diffusion_model.blocks.0.self_attn.q": "Wan",
    "diffusion_model.layers.0.attention.to_q": "Z-Image",
    "diffusion_model.double_blocks.0.img_attn_qkv": "HunyuanVideo",
}


@pytest.mark.parametrize("module", OTHERS)
def test_loras_of_other_models_are_refused(model, module):
    state = kohya({module: (torch.ones(2, 8), torch.ones(8, 2))}, "", flat=False)
    with pytest.raises(BadInput, match=OTHERS[module]) as refused:
        to_portable(state, model.family, empty(model), "it")
    assert "is expected" in str(refused.value)


def test_loras_of_the_other_family_and_of_other_sizes_are_refused(kontext, qwen):
    for own, other, name in ((kontext, qwen, "Qwen-Image"), (qwen, kontext, "Flux")):
        pairs = random_pairs(empty(other))
        state = kohya(launched_processes(pairs, other.family, empty(other)))
        with pytest.raises(BadInput, match=f"a LoRA of {name} "):
            to_portable(state, own.family, empty(own), "it")
    with torch.device("meta"):
        large = FULL_WIDTH["kontext"]()
    with pytest.raises(BadInput, match="made for another model"):
        to_portable(portable(random_pairs(large, rank=1)), kontext.family, empty(kontext), "it")


@pytest.mark.parametrize("half", ["lora_down.weight", "lora_up.weight"])
def test_half_a_lora_is_refused(model, half):
    state = {name: tensor for name, tensor in first_pair(model).items() if not name.endswith(half)}
    with pytest.raises(BadInput, match="incomplete LoRA"):
        to_portable(state, model.family, empty(model), "it")


def test_the_same_module_twice_is_refused(model):
    pairs = random_pairs(empty(model), r"transformer_blocks\.0\.attn\.to_out\.0")
    with pytest.raises(BadInput, match="twice"):
        to_portable(portable(pairs) | portable(pairs, ""), model.family, empty(model), "it")


@pytest.mark.slow
def test_parts_for_text_encoders_are_left_out_and_that_is_said(model, tmp_path):
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1": (torch.ones(2, 8), torch.ones(8, 2))}
    state = first_pair(model)
    both = state | kohya(text, "")
    found = to_portable(both, model.family, empty(model), "it")
    assert found.keys() == to_portable(state, model.family, empty(model), "it").keys()
    file = tmp_path / "both.safetensors"
    write_tensors(file, both)
    assert "both.safetensors: 3 tensors for text encoders" in ignored_tensors_note(file)
    said = [event for event in edit(model, shape_picture(1), "x", steps=1, lora=file) if isinstance(event, Notice)]
    assert [event.message for event in said] == [ignored_tensors_note(file)]
    assert ignored_tensors_note(state) is None
    with pytest.raises(BadInput, match="only parts for text encoders"):
        to_portable(kohya(text, ""), model.family, empty(model), "it")


def test_a_damaged_note_of_the_alphas_is_refused(model):
    for note in ("{", "[]", json.dumps({"transformer.lora_alpha": "x"}), json.dumps({"lora_alpha": None})):
        with pytest.raises(BadInput, match="lora_adapter_metadata"):
            to_portable(first_pair(model), model.family, empty(model), "it", {"lora_adapter_metadata": note})


def test_a_header_whose_length_begins_like_a_pickle_is_read(model, tmp_path):
    state = first_pair(model)
    file = tmp_path / "lora.safetensors"
    padding = 0
    while not file.is_file() or file.read_bytes()[0] != 0x80:
        padding += 8
        save_file(state, file, {"padding": "x" * padding})
    assert ignored_tensors_note(file) is None
    load_lora(model.load_transformer("cpu", torch.float32), model.family, file)


@pytest.mark.parametrize(
    ("pattern", "read"),
    [("to_q", True), ("blocks\\.\\d+\\.attn.to_q", True), ("^blocks.0$", True), ("(a+)+b", False), (".*.*.*x", False)],
)
def test_patterns_of_alphas_cannot_backtrack(pattern: str, read: bool) -> None:
    """A header comes from a stranger, and PEFT's patterns are regular expressions."""
    header = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {pattern: 2}})}
    if read:
        assert file_scales(header, "lora").patterns == {pattern: 2.0}
    else:
        with pytest.raises(BadInput, match="alpha_pattern"):
            file_scales(header, "lora")
