"""The plan: what it gives up and in which order, what it refuses and what it then advises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from trainer.cli.main import main
from trainer.config.request import TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo, assumed_gpu, query_device
from trainer.errors import BAD_INPUT, OK, BadInput
from trainer.events import Planned
from trainer.memory.planner import inference_plan, make_plan, precisions
from trainer.models.edit_model import open_model

from ..benchmarks.plans import sections
from .processes import run_script

pytestmark = pytest.mark.xdist_group("plans")  # In one process: what was counted once is known to the next test.

QWEN, KONTEXT = "Qwen/Qwen-Image-Edit", "black-forest-labs/FLUX.1-Kontext-dev"
COLUMNS = {"caption_column": "c", "control_image_column": "b", "image_column": "a"}
PARAMS = TrainingParams(**COLUMNS)
HOST = 64
DOCS = Path(__file__).parents[2] / "docs" / "memory.md"


def planned(base_model: str, vram: float, host: float = HOST, batch_size: int = 1, **settings: object):
    """The plan of a LoRA on a card of that many GB."""
    params = PARAMS.model_copy(update={"batch_size": batch_size})
    return make_plan(open_model(base_model), params, RunSettings(**settings), assumed_gpu(vram, host))


@pytest.mark.slow
@pytest.mark.parametrize("base_model", [QWEN, KONTEXT])
def test_smaller_cards_give_up_more(base_model: str):
    """And never more than they have; nothing that costs time is given up before what costs less."""
    plans = [planned(base_model, vram) for vram in (180, 80, 48, 32, 24, 16, 12)]
    for plan, vram in zip(plans, (180, 80, 48, 32, 24, 16, 12), strict=True):
        assert plan.bytes == sum(plan.expected.values()) <= vram * 1e9
        if plan.streamed:
            assert set(plan.activation_checkpointing) == {"full"}
            assert plan.inputs_on_host
        if any(mode != "none" for mode in plan.activation_checkpointing):
            assert plan.modulation_on_host
    streamed = [len(plan.streamed) for plan in plans]
    assert streamed == sorted(streamed)
    assert plans[0].precision == "bf16"
    assert set(plans[0].activation_checkpointing) == {"none"}
    assert not plans[0].modulation_on_host
    assert plans[-1].precision == "int8"


@pytest.mark.slow
def test_the_parts_are_those_that_are_known():
    """Counted by hand: 20.43 and 11.90 billion weights, a third and a quarter of them modulation."""
    large = planned(QWEN, 180)
    assert large.expected["frozen weights"] == pytest.approx(40.9e9, rel=0.01)
    assert planned(QWEN, 24).expected["frozen weights"] == pytest.approx(13.7e9, rel=0.01)
    assert planned(KONTEXT, 24).expected["frozen weights"] == pytest.approx(8.7e9, rel=0.01)
    assert large.expected["trained weights, gradients, optimizer"] == pytest.approx(1.7e9, rel=0.02)
    # 57 blocks at 1024 x 1024 from 1024 x 1024, checkpointed in full: 8704 tokens of 3072 bf16 numbers a block.
    kept = planned(KONTEXT, 80, gradient_checkpointing="on").expected["activations"]
    assert kept == pytest.approx(56 * 8704 * 3072 * 2, rel=0.05)


@pytest.mark.slow
def test_settings_override():
    assert planned(QWEN, 80, precision="nf4").precision == "nf4"
    assert planned(KONTEXT, 80, precision="fp8").dtype == torch.bfloat16
    assert set(planned(KONTEXT, 80, gradient_checkpointing="selective").activation_checkpointing) == {"selective"}
    assert set(planned(KONTEXT, 48, precision="bf16", gradient_checkpointing="on").activation_checkpointing) == {"full"}
    assert not planned(QWEN, 80, offload="none", gradient_checkpointing="on").modulation_on_host
    assert planned(QWEN, 80, offload="modulation", gradient_checkpointing="on").modulation_on_host
    every = planned(KONTEXT, 80, offload="blocks")
    assert every.streamed == frozenset(range(57))
    assert not planned(KONTEXT, 24, lora_targets="all-linear").modulation_on_host


@pytest.mark.slow
def test_compiled_blocks_are_computed_again_whole():
    assert "selective" not in planned(QWEN, 32, compile="on").activation_checkpointing


@pytest.mark.slow
def test_a_host_without_room_streams_less():
    """What is streamed or kept beside the card has to fit there."""
    assert len(planned(QWEN, 12, host=64).streamed) > 20
    with pytest.raises(BadInput, match="6 GB of host memory"):
        planned(QWEN, 12, host=6)


@pytest.mark.slow
def test_what_a_refusal_advises_fits():
    with pytest.raises(BadInput) as refused:
        planned(QWEN, 10, batch_size=4, offload="phases")
    advice = re.findall(
        r'(offload|gradient_checkpointing|precision|resolution|batch_size) "?(\w+)"?', str(refused.value)
    )
    assert advice
    together = "together" in str(refused.value)
    choices = [dict(advice)] if together else [{name: value} for name, value in advice]
    for choice in choices:
        batch = int(choice.pop("batch_size", 4))
        how = {"offload": "phases", **{k: int(v) if v.isdigit() else v for k, v in choice.items()}}
        assert planned(QWEN, 10, batch_size=batch, **how).bytes <= 10e9


@pytest.mark.slow
def test_nothing_fits_a_card_that_is_far_too_small():
    with pytest.raises(BadInput, match="No setting makes it fit"):
        planned(QWEN, 2)


@pytest.mark.parametrize(
    ("settings", "params", "named"),
    [
        ({"offload": "blocks", "gradient_checkpointing": "off"}, {}, "gradient_checkpointing"),
        ({"offload": "modulation", "lora_targets": "all-linear"}, {}, "all-linear"),
        ({"offload": "blocks"}, {"use_lora": False}, "use_lora"),
        ({"precision": "int8"}, {"use_lora": False}, "use_lora"),
    ],
)
def test_contradictions_are_named(settings: dict, params: dict, named: str, kontext):
    with pytest.raises(BadInput, match=named):
        make_plan(kontext, PARAMS.model_copy(update=params), RunSettings(**settings), assumed_gpu(24))


@pytest.mark.slow
def test_a_full_fine_tune_of_a_large_model_is_refused_on_a_small_card():
    params = PARAMS.model_copy(update={"use_lora": False})
    model = open_model(KONTEXT)
    with pytest.raises(BadInput, match="use_lora true"):
        make_plan(model, params, RunSettings(gradient_checkpointing="on"), assumed_gpu(48, HOST))
    how = RunSettings(optimizer="adafactor", gradient_checkpointing="on")
    rounded = make_plan(model, params, how, assumed_gpu(80, HOST))
    assert rounded.expected["trained weights, gradients, optimizer"] == pytest.approx(4 * 11.9e9, rel=0.01)


@pytest.mark.slow
def test_a_card_without_bf16_computes_in_float32(monkeypatch: pytest.MonkeyPatch):
    """Turing emulates bf16, which torch reports as supported unless it is asked to leave the emulation out."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 * 10**9, 12 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    turing = query_device(torch.device("cuda"))
    assert (turing.bf16, turing.capability) == (False, (7, 5))
    assert precisions(RunSettings(), turing) == ["fp32", "int8"]
    plan = make_plan(open_model("tiny/flux-kontext"), PARAMS, RunSettings(precision="int8"), turing)
    assert plan.dtype == torch.float32


def test_an_assumed_card_has_a_capability_where_its_size_tells():
    assert assumed_gpu(24).capability == (8, 9)
    assert assumed_gpu(80).capability is None


def test_on_the_cpu_everything_stays_and_nothing_is_refused(kontext):
    device_info = DeviceInfo(kind="cpu", free=1, host=1, bf16=False)
    plan = make_plan(kontext, PARAMS, RunSettings(), device_info)
    assert (plan.precision, plan.modulation_on_host, plan.streamed) == ("fp32", False, frozenset())


@pytest.mark.slow
@pytest.mark.parametrize(("vram", "streams"), [(80, False), (20, False), (8, True)])
def test_drawing_takes_what_fits(vram: int, streams: bool):
    plan = inference_plan(open_model(QWEN), RunSettings(), assumed_gpu(vram, HOST))
    assert bool(plan.streamed) == streams
    assert plan.modulation_on_host == (vram < 80)


@pytest.mark.slow
def test_a_run_goes_on_in_the_precision_that_it_began_in(kontext, runs):
    runs.run(kontext, steps=2)
    file = runs.folder / "run" / "run.json"
    assert json.loads(file.read_text())["precision"] == "fp32"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "int8"}))
    lines = [event.line for event in runs.run(kontext, steps=4) if isinstance(event, Planned)]
    assert len(lines) == 1
    assert lines[0].startswith("int8")


@pytest.mark.slow
def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without the dataset, the weights or the card."""
    request = {"resource": "not-there.parquet", "base_model": QWEN, "script_type": "image_editing"}
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request | {"training_params": COLUMNS}))
    assert main(["plan", str(file), "--vram", "24", "--ram", "64"]) == OK
    said = capsys.readouterr().out
    assert "int8, modulation in host memory" in said
    numbers = [float(number) for number in re.findall(r"(\d+\.\d\d) GB$", said, re.MULTILINE)]
    assert numbers[-1] == pytest.approx(sum(numbers[:-1]), abs=0.05)
    assert main(["plan", str(file), "--vram", "2"]) == BAD_INPUT
    assert "does not fit" in capsys.readouterr().err
    assert main(["plan", str(file), "--vram", "-1"]) == BAD_INPUT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing": "on"}, {"precision": "int8"}], ids=str)
def test_a_reduced_model_takes_what_was_planned(how: dict[str, str]):
    """In a process of its own: the growth of its memory over some steps."""
    found = json.loads(run_script("tests.trainer.planned_memory", json.dumps(how)).splitlines()[-1])
    assert found["planned"] == pytest.approx(found["taken"], rel=0.15), found


@pytest.mark.slow
@pytest.mark.parametrize("heading", sections())
def test_the_tables_in_the_docs_are_the_planners(heading: str):
    """Every figure of every row; `python tests/benchmarks/plans.py` prints them anew."""
    section = DOCS.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("###")[0]
    expected = sections()[heading]()
    assert len(expected) > 6
    assert [line for line in section.splitlines() if line.startswith("|")] == expected
