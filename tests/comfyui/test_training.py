"""Graphs from a parquet to an edited image, in a real server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from .graphs import edited, node, training
from .run_snapshots import LiveSnapshot, keys
from .server import Result, Server

MESSAGES_PER_SECOND = 10


def lora(server: Server, name: str) -> dict[str, torch.Tensor]:
    return load_file(server.output / "loras" / f"{name}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ok(result: Result) -> Result:
    assert result.status == "execution_success", result.details
    return result


@pytest.mark.parametrize("base_model", ["tiny/flux-kontext", "tiny/qwen-image-edit"])
def test_a_graph_trains_previews_and_edits(server: Server, base_model: str) -> None:
    name = base_model.rpartition("/")[2]
    prompt = edited(training(base_model, name)) | {
        "plot": node("LossGraphNode", loss=["train", 4], filename_prefix="loss"),
        "grid": node("SaveImage", images=["preview", 0], filename_prefix=f"{name}-grid"),
        "report": node("PreviewAny", source=["dataset", 2]),
    }
    result = ok(server.run(prompt))
    assert f"{name}-000004.safetensors" in server.get("/models/loras")
    assert all(torch.isfinite(tensor).all() for tensor in lora(server, f"{name}-000004").values())
    assert "128 rows, all usable" in result.text("report")
    grid = Image.open(server.output / f"{name}-grid_00001_.png")
    assert grid.size == (3 * 64, 64), "control, step 0, step 4"
    assert len(result.outputs["saved"]["images"]) == 4, "an edit of each preview row"
    assert {sample["step"] for event in result.events() for sample in event["samples"]} == {0, 4}


def test_messages_carry_every_point_and_are_not_too_many(server: Server) -> None:
    result = ok(server.run(training(run_name="messages", params={"steps": 60, "sample_every": 60, "lora_rank": 1})))
    points = [tuple(point) for event in result.events() for point in event["points"]]
    assert [step for step, _ in points] == list(range(1, 61))
    times = [time for time, kind, _ in result.messages if kind == "edit_trainer.run"]
    assert all(sum(start <= time < start + 1 for time in times) <= MESSAGES_PER_SECOND for start in times)
    assert all(event.keys() == keys(LiveSnapshot) | {"from"} for event in result.events())
    last = result.events()[-1]
    assert (last["state"], last["step"], last["steps"], last["run"]) == ("finished", 60, 60, "messages")
    assert any("step" in event["status"] and "loss" in event["status"] for event in result.events())
    assert any(event["seconds_left"] and event["phase"] == "training" for event in result.events())
    snapshot = server.get("/edit_trainer/runs/train")
    assert [tuple(point) for point in snapshot["points"]] == points
    assert {sample["step"] for sample in snapshot["samples"]} == {0, 60}
    log = (server.output / "edit_trainer" / "messages" / "log.jsonl").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in log.splitlines()]
    assert [line["loss"] for line in logged if line["event"] == "step"] == [loss for _, loss in points]


def test_cancel_saves_and_the_same_graph_goes_on_to_the_same_lora(server: Server) -> None:
    params = {"steps": 40, "sample_every": 20, "gradient_accumulation": 2}
    seen: list[int] = []

    def cancel_in_the_middle(kind: str, data: dict) -> None:
        if kind == "edit_trainer.run" and data["points"]:
            seen.append(data["step"])
            if len(seen) == 1:
                server.interrupt()

    stopped = server.run(training(run_name="cancelled", params=params), cancel_in_the_middle)
    assert stopped.status == "execution_interrupted"
    folder = server.output / "edit_trainer" / "cancelled"
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 1 <= steps[-1] < 40
    assert checkpoints[-1] == f"step-{steps[-1]:06d}", "the last finished step"
    assert server.get("/edit_trainer/runs/train")["state"] == "stopped"

    resumed = ok(server.run(training(run_name="cancelled", params=params)))
    assert [point[0] for event in resumed.events() for point in event["points"]] == list(range(1, 41))
    ok(server.run(training(run_name="uninterrupted", params=params)))
    assert same(lora(server, "cancelled-000040"), lora(server, "uninterrupted-000040"))


def test_cancel_while_images_are_cached(server: Server, tmp_path: Path) -> None:
    cancelled = []

    def cancel_at_once(kind: str, data: dict) -> None:
        if kind == "edit_trainer.run" and "caching" in data["status"] and not cancelled:
            cancelled.append(data["status"])
            server.interrupt()

    prompt = training("tiny/qwen-image-edit", "cancelled-early", settings={"resolution": 96})
    assert server.run(prompt, cancel_at_once).status == "execution_interrupted"
    assert not list((server.output / "edit_trainer" / "cancelled-early" / "checkpoints").iterdir())


def test_a_finished_graph_executes_nothing(server: Server) -> None:
    prompt = edited(training(run_name="once"))
    ok(server.run(prompt))
    again = ok(server.run(prompt))
    assert not again.executed()
    assert not again.events()


def test_replaced_pictures_train_anew_and_touched_ones_do_not(server: Server) -> None:
    folder = server.base / "input" / "pairs"
    folder.mkdir()
    for name, color in (("before", "red"), ("after", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
    pq.write_table(
        pa.table({"caption": ["x"], "control": ["before.png"], "target": ["after.png"]}), folder / "pairs.parquet"
    )
    prompt = training(run_name="pairs", dataset={"resource": "pairs/pairs.parquet"})
    ok(server.run(prompt))
    assert not ok(server.run(prompt)).executed()
    first = lora(server, "pairs-000004")
    os.utime(folder / "after.png", (9, 9))
    ok(server.run(prompt))
    assert not (server.output / "edit_trainer" / "pairs-2").exists()
    Image.new("RGB", (64, 64), "green").save(folder / "after.png")
    os.utime(folder / "after.png", (9, 9))
    assert "pairs-2" in ok(server.run(prompt)).text("train")
    assert not same(lora(server, "pairs-2-000004"), first)
    assert same(lora(server, "pairs-000004"), first)


def test_a_finished_run_is_found_again_when_the_cache_is_gone(server: Server) -> None:
    ok(server.run(training(run_name="found")))
    before = lora(server, "found-000004")
    log = server.output / "edit_trainer" / "found" / "log.jsonl"
    written = log.stat().st_mtime_ns
    server.post("/free", {"unload_models": True, "free_memory": True})
    (server.output / "loras" / "found-000004.safetensors").unlink()
    again = ok(server.run(training(run_name="found")))
    assert log.stat().st_mtime_ns == written, "not trained again"
    assert [point[0] for event in again.events() for point in event["points"]] == [1, 2, 3, 4]
    assert same(before, lora(server, "found-000004"))


def test_two_runs_one_after_the_other_do_not_disturb_each_other(server: Server) -> None:
    alone = ok(server.run(training(run_name="alone", seed=7)))
    first = training(run_name="first", seed=1)
    both = first | {f"second {name}": part for name, part in training("tiny/qwen-image-edit", "second").items()}
    links = {name: f"second {name}" for name in training()}
    for name in links.values():
        inputs = both[name]["inputs"]
        both[name]["inputs"] = {
            key: [links[value[0]], value[1]] if isinstance(value, list) else value for key, value in inputs.items()
        }
    ok(server.run(both))
    ok(server.run(training(run_name="third", seed=7)))
    assert same(lora(server, "third-000004"), lora(server, "alone-000004")), alone.details
    assert not same(lora(server, "first-000004"), lora(server, "alone-000004"))
    assert lora(server, "second-000004").keys() != lora(server, "first-000004").keys()


def test_another_training_gets_a_run_of_its_own_and_says_so(server: Server) -> None:
    ok(server.run(training(run_name="mine")))
    before = lora(server, "mine-000004")
    other = ok(server.run(training(run_name="mine", params={"lora_rank": 8})))
    assert "mine-2" in other.text("train")
    assert "holds another training" in other.text("train")
    assert same(before, lora(server, "mine-000004"))
    fresh = ok(server.run(training(run_name="mine", resume=False)))
    assert "mine-3-000004" in fresh.text("train")
    assert same(before, lora(server, "mine-3-000004"))


def test_more_steps_go_on_from_the_finished_run(server: Server) -> None:
    ok(server.run(training(run_name="longer")))
    result = ok(server.run(training(run_name="longer", params={"steps": 6, "sample_every": 4})))
    assert [json.loads(json.dumps(event["step"])) for event in result.events()][-1] == 6
    assert (server.output / "loras" / "longer-000006.safetensors").is_file()


def test_a_full_fine_tune_edits_with_its_own_weights(server: Server) -> None:
    prompt = edited(training(run_name="full", params={"use_lora": False, "steps": 2, "learning_rate": 0.01}))
    result = ok(server.run(prompt))
    file = server.output / "diffusion_models" / "full-000002.safetensors"
    assert str(file) in result.text("train")
    assert (server.output / "edit_trainer" / "full" / file.name).read_bytes() == file.read_bytes()
    assert file.name in server.get("/object_info/UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"][0]
    base = prompt | {"saved": node("SaveImage", images=["edit", 0], filename_prefix="untrained")}
    base["edit"] = node("EditTrainerEditImage", **prompt["edit"]["inputs"] | {"model": ["model", 0]})
    ok(server.run(base))
    pictures = [Image.open(server.output / f"{name}_00001_.png").tobytes() for name in ("edited", "untrained")]
    assert pictures[0] != pictures[1]


def test_a_sample_image_from_the_graph_wins(server: Server) -> None:
    picture = Image.new("RGB", (48, 80), "red")
    picture.save(server.base / "input" / "control.png")
    prompt = training(run_name="own-control") | {"image": node("LoadImage", image="control.png")}
    prompt["sample"]["inputs"] |= {"control_image": ["image", 0], "ctrl_img_url": "nowhere.png"}
    ok(server.run(prompt))
    kept = Image.open(server.output / "edit_trainer" / "own-control" / "samples" / "control-00.png")
    assert kept.size == picture.size
    assert kept.tobytes() == picture.tobytes()
