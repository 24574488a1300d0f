"""What is public for ever: ids, inputs, their order, types, bounds and combo strings, as /object_info tells them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from .server import PACK, Server, find_python
from .snapshot import LOCALE, SNAPSHOT, locale_part, our_nodes, public_part

NEW_SETTING = """
import importlib, sys
comfyui, folder, pack = sys.argv[1:]
sys.argv[1:] = []
sys.path[:0] = [comfyui, folder]
from comfy.cli_args import args
args.cpu = True
import utils.extra_config  # before other modules of that name, as ComfyUI's own start does
params = importlib.import_module(f"{pack}.nodes.params")
class Extended(params.RunSettings):
    made_up: int = params.RunSettings.model_fields["keep_checkpoints"]
before, after = params.settings_inputs(params.RunSettings), params.settings_inputs(Extended)
assert [widget.id for widget in after] == [*(widget.id for widget in before), "made_up"]
assert after[-1].optional and after[-1].tooltip and (after[-1].default, after[-1].min) == (3, 1)
"""


def test_a_new_setting_becomes_the_last_widget_of_the_settings_node(comfyui: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack_of_any_name"  # a checkout may be called `main`, which is a module of ComfyUI
    pack.symlink_to(PACK, target_is_directory=True)
    command = [find_python(comfyui), "-c", NEW_SETTING, str(comfyui), str(tmp_path), pack.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_node_is_listed_with_training_and_found_by_other_words(server: Server) -> None:
    infos = our_nodes(server).values()
    assert {info["category"] for info in infos} == {"model/training"}
    knows_aliases = any("search_aliases" in info for info in server.get("/object_info/KSampler").values())
    assert all(bool(info.get("search_aliases")) == knows_aliases for info in infos)


WIDGETS = ("BOOLEAN", "COMBO", "FLOAT", "INT", "STRING")
"""Types of inputs that have a widget."""
MAIN_WIDGETS = {
    "EditTrainerLoadDataset": ["resource", "caption_column", "control_image_column", "image_column"],
    "EditTrainerParams": ["batch_size", "learning_rate", "lora_alpha", "lora_rank", "sample_every", "steps"],
    "EditTrainerSample": ["prompt", "ctrl_img_url"],
    "EditTrainerBaseModel": ["base_model", "transformer"],
    "EditTrainerTrain": ["run_name"],
    "EditTrainerEditImage": ["prompt", "seed", "steps", "guidance", "lora_strength"],
    "EditTrainerLoadRequest": ["request"],
    "EditTrainerSaveRequest": ["filename_prefix"],
}
"""Required widgets that stand open, by node."""


def test_what_few_people_touch_is_folded(server: Server) -> None:
    def unfolded(info: dict[str, Any]) -> list[str]:
        required = info["input"]["required"].items()
        return [field for field, (kind, options) in required if kind in WIDGETS and not options.get("advanced")]

    skip_layers = server.get("/object_info/SkipLayerGuidanceSD3")["SkipLayerGuidanceSD3"]
    if "start_percent" not in unfolded(skip_layers):  # this ComfyUI folds inputs
        infos = our_nodes(server)
        assert {name: unfolded(infos[name]) for name in MAIN_WIDGETS} == MAIN_WIDGETS


def test_nothing_public_has_changed(server: Server) -> None:
    ours = {name: public_part(info) for name, info in our_nodes(server).items()}
    assert ours == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


SUCCESSORS = {"ImageCrop": "ImageCropV2"}
"""Deprecated nodes of the workflows whose successor the oldest supported ComfyUI does not have yet."""


def test_no_workflow_has_a_node_that_is_deprecated_or_missing(server: Server) -> None:
    known = server.get("/object_info")
    for path in (*(PACK / "example_workflows").glob("*.json"), *(PACK / "subgraphs").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
        types = {node["type"] for graph in (workflow, *subgraphs) for node in graph["nodes"]}
        types -= {"MarkdownNote", *(subgraph["id"] for subgraph in subgraphs)}
        assert types <= known.keys(), path.name
        assert {name for name in types if known[name].get("deprecated")} <= SUCCESSORS.keys(), path.name


def test_every_node_and_input_explains_itself(server: Server) -> None:
    for name, info in our_nodes(server).items():
        assert info["description"], name
        assert all(info["output_tooltips"]), name
        for group in ("required", "optional"):
            for field, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{field}"


def test_the_english_texts_are_the_nodes_own(server: Server) -> None:
    ours = {name: locale_part(info) for name, info in our_nodes(server).items()}
    assert ours == json.loads(LOCALE.read_text(encoding="utf-8"))


def test_every_number_has_bounds_and_a_step_that_keeps_its_default(server: Server) -> None:
    for name, info in our_nodes(server).items():
        for field, (kind, options) in info["input"]["required"].items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{name}.{field}"
                rounding = options.get("round", options.get("step", 1))
                assert abs(options["default"] / rounding - round(options["default"] / rounding)) < 1e-6, (
                    f"{name}.{field}"
                )


def test_the_pack_loads_in_under_a_second_and_without_a_warning(server: Server) -> None:
    log = server.log.read_text(encoding="utf-8", errors="replace")
    seconds = re.search(rf"([\d.]+) seconds( \(IMPORT FAILED\))?: \S*{PACK.name}\s", log)
    assert seconds, log
    assert not seconds[2]
    assert float(seconds[1]) < 1
    assert "comfy_entrypoint" not in log
