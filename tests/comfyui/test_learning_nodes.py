"""Held-out rows, averaged weights, masks and a LoRA for samples, in graphs on a real server."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..trainer.conftest import png
from .graphs import node, training
from .server import PACK, Server
from .test_faults import refused
from .test_training import lora, ok, same

MASKED = "masked.parquet"


def masked_dataset(server: Server) -> dict[str, str]:
    """Write some of the example's rows with masks; returns the dataset node's inputs."""
    table = pq.read_table(PACK / "example_workflows" / "edit_trainer_example.parquet").slice(0, 12)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    pq.write_table(table.append_column("where", pa.array([png(mask)] * 12)), server.base / "input" / MASKED)
    return {"resource": MASKED, "mask_column": "where"}


def graph(server: Server, run_name: str, **settings: Any) -> dict[str, Any]:
    params = {"learning_rate": 0.01, "steps": 6, "sample_every": 6}
    return training(run_name=run_name, dataset=masked_dataset(server), params=params, settings=settings)


def settings_of(server: Server, run_name: str) -> dict[str, Any]:
    return json.loads((server.output / "edit_trainer" / run_name / "settings.json").read_text(encoding="utf-8"))


def test_a_graph_measures_held_out_rows_and_gives_the_best_lora(server: Server) -> None:
    prompt = graph(server, "held-out", validation_rows=0.25, validate_every=2, ema_decay=0.5, mask_prior=0.5)
    prompt["plot"] = node("LossGraphNode", loss=["train", 5], filename_prefix="held-out")
    prompt["best"] = node("PreviewAny", source=["train", 6])
    result = ok(server.run(prompt))
    points = [tuple(point) for event in result.events() for point in event["validation"]]
    assert [step for step, _ in points] == [0, 2, 4, 6]
    last = result.events()[-1]
    best = min(points, key=lambda point: point[1])[0]
    assert last["best_step"] == best
    assert best > 0, "the example's edit can be learned"
    snapshot = server.get("/edit_trainer/runs/train")
    assert ([tuple(point) for point in snapshot["validation"]], snapshot["best_step"]) == (points, best)
    saved = server.get("/edit_trainer/archive/held-out")
    assert ([tuple(point) for point in saved["validation"]], saved["best_step"]) == (points, best)
    listed = server.get("/models/loras")
    assert {"held-out-000006.safetensors", "held-out-000006-ema.safetensors"} <= {*listed}
    assert f"held-out-{best:06d}-best.safetensors" in listed
    assert not same(lora(server, "held-out-000006"), lora(server, "held-out-000006-ema"))
    settings = settings_of(server, "held-out")
    assert (settings["mask_column"], settings["mask_prior"]) == ("where", 0.5)
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in result.text("best")
    text = result.text("train")
    assert f"Beside it: held-out-{best:06d}-best.safetensors" in text
    assert "held-out-000006-ema.safetensors" in text


def test_faults_of_masks_are_said_at_the_node(server: Server) -> None:
    prompt = graph(server, "no-masks", mask_prior=0.5)
    prompt["dataset"]["inputs"]["mask_column"] = "nowhere"
    result = server.run(prompt)
    assert result.status == "refused"
    assert 'mask_column: "nowhere" is not a column' in str(result.details["node_errors"]["dataset"])
    prompt["dataset"]["inputs"]["mask_column"] = ""
    refused(server.run(prompt), "train", "mask_prior: needs masks")


def test_a_lora_of_the_menu_is_applied_to_the_samples_alone(server: Server) -> None:
    ok(server.run(graph(server, "speed")))
    prompt = graph(server, "with-speed", sample_lora="speed-000006.safetensors", sample_lora_steps=1)
    ok(server.run(prompt))
    assert same(lora(server, "speed-000006"), lora(server, "with-speed-000006"))
    folder = server.output / "edit_trainer"
    drawn = [(folder / name / "samples" / "step-000000-00.png").read_bytes() for name in ("speed", "with-speed")]
    assert drawn[0] != drawn[1]
    assert settings_of(server, "with-speed")["sample_lora"].endswith("speed-000006.safetensors")
    saved = server.get("/edit_trainer/archive/with-speed")
    assert saved["settings"]["sample_lora"] == "speed-000006.safetensors"
