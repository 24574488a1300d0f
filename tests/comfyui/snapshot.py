"""The public interface as a server tells it, and the files that repeat it.

`python -m tests.comfyui.snapshot` writes them anew, after a change that only appends.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from .server import PACK, Server, find_comfyui

SNAPSHOT = Path(__file__).parent / "object_info.json"
LOCALE = PACK / "locales" / "en" / "nodeDefs.json"
PUBLIC_OPTIONS = ("default", "min", "max", "step", "round", "options", "multiline", "control_after_generate")

FILE_LISTS = {
    "init_lora": {"options": ["none"]},
    "lora_name": {"options": ["none"]},
    "sample_lora": {"options": ["none"]},
    "transformer": {"options": ["auto"]},
}
"""Inputs that list the files that happen to be there, and what they always list."""


def our_nodes(server: Server) -> dict[str, Any]:
    """/object_info of the pack's nodes."""
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("EditTrainer")}


def public_part(info: dict[str, Any]) -> dict[str, Any]:
    """Of one node's info what a saved workflow depends on."""
    inputs = {
        group: {
            name: [kind, {key: options[key] for key in PUBLIC_OPTIONS if key in options} | FILE_LISTS.get(name, {})]
            for name, (kind, options) in info["input"].get(group, {}).items()
        }
        for group in ("required", "optional")
    }
    return {
        "display_name": info["display_name"],
        "inputs": inputs,
        "input_order": {group: info["input_order"].get(group, []) for group in ("required", "optional")},
        "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        "output_node": info["output_node"],
    }


def locale_part(info: dict[str, Any]) -> dict[str, Any]:
    """One node's texts as ComfyUI's page looks them up."""
    inputs = {name: part for group in ("required", "optional") for name, part in info["input"].get(group, {}).items()}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in inputs.items()},
        "outputs": {str(index): {"name": name, "tooltip": text} for index, (name, text) in enumerate(outputs)},
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    comfyui = find_comfyui()
    assert comfyui, "set COMFYUI_PATH"
    server = Server(comfyui, Path(tempfile.mkdtemp()))
    try:
        ours = our_nodes(server)
    finally:
        server.close()
    write(SNAPSHOT, {name: public_part(info) for name, info in ours.items()})
    write(LOCALE, {name: locale_part(info) for name, info in ours.items()})


if __name__ == "__main__":
    main()
