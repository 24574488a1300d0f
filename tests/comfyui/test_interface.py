"""What is public for ever: ids, inputs, their order, types, bounds and combo strings, as /object_info tells them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .server import PACK, Server

SNAPSHOT = Path(__file__).parent / "object_info.json"
PUBLIC_OPTIONS = ("default", "min", "max", "step", "round", "options", "multiline", "control_after_generate")


def public_part(info: dict[str, Any]) -> dict[str, Any]:
    """Of one node's info what a saved workflow depends on."""
    inputs = {
        group: {
            name: [kind, {key: options[key] for key in PUBLIC_OPTIONS if key in options}]
            for name, (kind, options) in info["input"].get(group, {}).items()
        }
        for group in ("required", "optional")
    }
    order = {group: info["input_order"].get(group, []) for group in ("required", "optional")}
    outputs = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return {
        "display_name": info["display_name"],
        "inputs": inputs,
        "input_order": order,
        "outputs": outputs,
        "output_node": info["output_node"],
    }


def our_nodes(server: Server) -> dict[str, Any]:
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("EditTrainer")}


def test_nothing_public_has_changed(server: Server) -> None:
    ours = {name: public_part(info) for name, info in our_nodes(server).items()}
    assert ours == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_node_and_input_explains_itself(server: Server) -> None:
    for name, info in our_nodes(server).items():
        assert info["description"], name
        assert all(info["output_tooltips"]), name
        for group in ("required", "optional"):
            for field, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{field}"


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
