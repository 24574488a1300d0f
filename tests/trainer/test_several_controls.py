"""Several control images: rows with any number of them train as they would alone, and runs resume, edit and draw."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer.cli.main import main
from trainer.config.request import FineTuneRequest, parse_request
from trainer.config.settings import parse_settings
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.resize import Size
from trainer.distributed.processes import SingleProcess
from trainer.encoding.cache import cache_key
from trainer.errors import BadInput
from trainer.events import Notice, RunControl, Sample, Step, drain
from trainer.inference import edit
from trainer.models.edit_model import EditModel, open_model
from trainer.training.batch import collate
from trainer.training.batch_sampler import BatchPlan, Position
from trainer.training.loop import Training, prepare, train
from trainer.training.setup import open_run
from trainer.training.step import micro_step

from ..several_controls import SEVERAL, registered, several_request, write_several
from .conftest import shape_picture
from .processes import run_script

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def family() -> Iterator[None]:
    with registered():
        yield


def opened(request: FineTuneRequest, **options: Any) -> EditDataset:
    return drain(open_dataset(Path(request.resource), request.training_params.columns, **options))


def events_of(folder: Path, name: str, control: RunControl | None = None, settings: Any = None, **params: Any):
    parquet = folder / "pairs.parquet"
    if not parquet.exists():
        write_several(parquet)
    request, options = parse_request(several_request(parquet, **params)), parse_settings(settings or {})
    dataset = opened(request, allow_no_control=options.allow_no_control)
    model = open_model(SEVERAL)
    return train(request, dataset, model, options, run_dir=folder / name, cache_dir=folder / "cache", control=control)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """A run that is ready to step, with the texts of all rows."""
    request = parse_request(several_request(write_several(tmp_path / "pairs.parquet")))
    settings, processes = parse_settings({}), SingleProcess(None)
    with ExitStack() as held:
        context = drain(
            open_run(request, opened(request), open_model(SEVERAL), settings, processes, held, run_dir=tmp_path / "run")
        )
        found = drain(prepare(context))
        texts = [(example, example.caption) for example in found.loader.examples]
        drain(found.loader.texts.encode(texts, RunControl()))
        yield found


def gradient(training: Training, groups: Sequence[Sequence[int]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one optimizer step whose micro-batches hold these rows."""
    loader, parameters = training.loader, training.state.trainable.parameters
    count, loss = sum(map(len, groups)), 0.0
    for parameter in parameters.values():
        parameter.grad = None
    for rows in groups:
        plan = BatchPlan(0, [loader.examples[row] for row in rows], Position(0, 0), count)
        batch = collate(plan, loader.encoder, loader.texts, "weighted", training.settings)
        assert len(batch.controls) == len(plan.examples[0].controls)
        loss += micro_step(training.components, batch, count, 1.0).item()
    return loss, torch.cat([parameter.grad.flatten() for parameter in parameters.values()])


def test_batches_give_the_mean_loss_and_gradient_of_their_rows(training: Training) -> None:
    alone = [gradient(training, [[row]]) for row in range(3)]
    controls = [len(example.controls) for example in training.loader.examples]
    assert controls == [1, 2, 2]
    for groups in ([[0], [1]], [[1, 2]], [[0], [1, 2]]):
        rows = [row for group in groups for row in group]
        loss, found = gradient(training, groups)
        expected = torch.stack([alone[row][1] for row in rows]).mean(0)
        assert loss == pytest.approx(sum(alone[row][0] for row in rows) / len(rows), rel=1e-5)
        assert found.norm() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_every_control_and_their_order_count(training: Training) -> None:
    loader = training.loader
    row = loader.examples[1]
    noisy = loader.encoder.family.pack(loader.encoder.latents(row.target))

    def velocity(controls: Sequence[Any]) -> torch.Tensor:
        family, text = loader.encoder.family, loader.texts.get(loader.encoder.text_key(row.caption, row.controls))
        packed = [family.pack(loader.encoder.latents(control.latents)) for control in controls]
        with torch.no_grad():
            transformer = training.components.transformer()
            return family.predict(transformer, noisy, packed, text, torch.tensor([0.5]), 1.0)

    first, second = row.controls
    usual = velocity([first, second])
    assert all(not torch.allclose(usual, velocity(other)) for other in ([first], [second], [second, first], []))


def test_text_keys_name_both_sizes_only_where_they_differ(training: Training, kontext: EditModel) -> None:
    encoder = training.loader.encoder
    (control,) = training.loader.examples[0].controls
    assert control.text_size == Size(control.size.width // 2, control.size.height // 2)
    tail = (encoder.components.model.fingerprint("text"), encoder.components.dtype)
    both = cache_key("text", "several/diffusers", "x", [(control.digest, *control.size, *control.text_size)], *tail)
    assert encoder.text_key("x", [control]) == both
    equal = type(control)(control.digest, control.size, control.latents, control.size)
    former = cache_key("text", "several/diffusers", "x", [(control.digest, *control.size)], *tail)
    assert encoder.text_key("x", [equal]) == former


def test_micro_batches_hold_rows_of_one_layout(tmp_path: Path) -> None:
    seen = []

    def watch(components: Any, batch: Any, *rest: Any) -> torch.Tensor:
        seen.append([len(example.controls) for example in batch.examples])
        return micro_step(components, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.training.loop.micro_step", watch)
        list(events_of(tmp_path, "run", batch_size=2, gradient_accumulation=2, steps=6))
    assert sorted(map(tuple, seen)) == [(1,)] * 6 + [(2, 2)] * 6


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    parts = {"batch_size": 2, "steps": 5, "samples": [{"ctrl_img_url": "", "prompt": "x"}]}
    control = RunControl()
    for event in events_of(tmp_path, "stopped", control, **parts):
        if isinstance(event, Step) and event.step == 2:
            control.stop()
    list(events_of(tmp_path, "stopped", **parts))
    list(events_of(tmp_path, "whole", **parts))
    stopped, whole = (tmp_path / name / f"{name}-000005.safetensors" for name in ("stopped", "whole"))
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    parquet = write_several(tmp_path / "pairs.parquet")
    told = run_script("tests.trainer.killed_run", tmp_path / "killed", parquet, 3, "several")
    assert told.endswith("finished=True\n"), told
    assert told.count("killed=True") == 3, told
    run_script("tests.trainer.killed_run", tmp_path / "whole", parquet, 0, "several")
    killed, whole = (tmp_path / name / f"{name}-000020.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


def test_texts_that_are_cached_give_the_same_run(tmp_path: Path) -> None:
    list(events_of(tmp_path, "blocks"))
    list(events_of(tmp_path, "cached", settings={"cache_text_embeddings": True}))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("blocks", "cached")
    ]
    assert losses[0] == losses[1]


def test_samples_show_all_their_controls(tmp_path: Path) -> None:
    for number in range(3):
        shape_picture(number).save(tmp_path / f"{number}.png")
    samples = [
        {"ctrl_img_url": "", "prompt": "both of the first row that has them"},
        {"ctrl_img_url": "2.png", "prompt": "one"},
        {"ctrl_img_url": ["0.png", "1.png", "2.png"], "prompt": "three"},
    ]
    write_several(tmp_path / "pairs.parquet", [(True, True)] * 2)
    drawn = [event for event in events_of(tmp_path, "run", steps=1, samples=samples) if isinstance(event, Sample)]
    assert [len(sample.controls) for sample in drawn if sample.step == 0] == [2, 1, 3]
    names = sorted(path.name for path in (tmp_path / "run" / "samples").glob("control-*"))
    assert names == [
        "control-00-2.png",
        "control-00.png",
        "control-01.png",
        "control-02-2.png",
        "control-02-3.png",
        "control-02.png",
    ]
    second = Image.open(tmp_path / "run" / "samples" / "control-02-2.png")
    assert second.tobytes() == shape_picture(1).tobytes()
    fewer = [samples[1], samples[1], {"ctrl_img_url": ["0.png", "1.png"], "prompt": "two"}]
    list(events_of(tmp_path, "run", steps=2, samples=fewer))
    assert sorted(path.name for path in (tmp_path / "run" / "samples").glob("control-*")) == [
        "control-00.png",
        "control-01.png",
        "control-02-2.png",
        "control-02.png",
    ]


def test_a_row_without_a_control_is_text_to_image_where_that_is_allowed(tmp_path: Path) -> None:
    write_several(tmp_path / "pairs.parquet", [(False, False), (False, True), (True, True)])
    with pytest.raises(BadInput, match=r'row 0, column "first": the row has no control image; set allow_no_control'):
        list(events_of(tmp_path, "run"))
    allowed = {"allow_no_control": True}
    events = list(events_of(tmp_path, "run", settings=allowed, samples=[{"ctrl_img_url": "", "prompt": "x"}]))
    assert [len(event.controls) for event in events if isinstance(event, Sample)] == [0] * 3
    assert sum(isinstance(event, Step) for event in events) == 4


def test_a_model_that_needs_a_control_refuses_rows_without_one(tmp_path: Path) -> None:
    write_several(tmp_path / "pairs.parquet", [(False, False), (True, False)])
    data = several_request(tmp_path / "pairs.parquet", control_image_columns=["first"])
    for base_model, needed in (("tiny/qwen-image-edit", True), ("tiny/flux-kontext", False)):
        request = parse_request(data | {"base_model": base_model})
        dataset = opened(request, allow_no_control=True)
        settings = parse_settings({"allow_no_control": True})
        run = train(request, dataset, open_model(base_model), settings, run_dir=tmp_path / base_model)
        if needed:
            with pytest.raises(BadInput, match='row 0, column "first": Qwen-Image-Edit needs a control image'):
                list(run)
        else:
            assert sum(isinstance(event, Step) for event in run) == 4


def test_edits_of_several_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = open_model(SEVERAL)
    one, other = shape_picture(1, (64, 64)), shape_picture(2, (96, 48))

    def edited(*images: Image.Image) -> Image.Image:
        return drain(edit(model, images, "add a frame", steps=2))

    both = edited(one, other)
    assert both.size == edited(other).size != edited(one).size
    assert both.tobytes() != edited(other, one).tobytes()
    with pytest.raises(BadInput, match=f"image: {SEVERAL} takes at most 3 control images, and 4 are named"):
        edited(*[one] * 4)
    with pytest.raises(BadInput, match="image: tiny/qwen-image-edit takes one control image, and 2 are named"):
        drain(edit(open_model("tiny/qwen-image-edit"), [one, one], "x"))
    for name, image in (("a", one), ("b", other)):
        image.save(tmp_path / f"{name}.png")
    paths = [part for name in ("a", "b") for part in ("--image", str(tmp_path / f"{name}.png"))]
    out = tmp_path / "out.png"
    command = ["edit", "--base-model", SEVERAL, *paths, "--prompt", "add a frame", "--steps", "2", "--out", str(out)]
    assert main(command) == 0
    assert Image.open(out).convert("RGB").tobytes() == both.tobytes()


def test_a_plan_counts_every_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def activations(columns: list[str]) -> float:
        path = tmp_path / "request.json"
        data = several_request(tmp_path / "pairs.parquet", control_image_columns=columns, batch_size=1024)
        path.write_text(json.dumps(data))
        assert main(["plan", str(path), "--vram", "8"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  activations")]
        return float(line.split()[1])

    one, two, three = (activations(["a", "b", "c"][:count]) for count in (1, 2, 3))
    assert one < two < three
    assert three - two == pytest.approx(two - one, rel=0.3)


def test_fields_without_effect_are_kept_and_said(tmp_path: Path) -> None:
    write_several(tmp_path / "pairs.parquet")
    data = several_request(tmp_path / "pairs.parquet", steps=1) | {"is_public": True, "oxen_model_path": "a/b"}
    request = parse_request(data)
    assert json.loads(request.to_json()).items() >= {"is_public": True, "oxen_model_path": "a/b"}.items()
    run = train(request, opened(request), open_model(SEVERAL), parse_settings({}), run_dir=tmp_path / "run")
    said = [event.message for event in run if isinstance(event, Notice)]
    assert "is_public and oxen_model_path of the request have no effect here." in said
    assert json.loads((tmp_path / "run" / "request.json").read_text())["oxen_model_path"] == "a/b"
