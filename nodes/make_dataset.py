"""Make Edit Dataset: packs folders of pictures, or a zip of them, into a parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from comfy_api.latest import io

from ..trainer.errors import BadInput
from ..trainer.paths import path_kind, typed_path
from .dataset import dataset_outputs, open_shown
from .folders import file_state, input_folder, is_folder_name
from .host import NodeDisplay, follow, readable_errors
from .notes import note
from .schema import node_schema

ROLES = ("control_folder", "control_folder_2", "control_folder_3", "target_folder")
"""Inputs that name a folder of pictures, or the end of their names; the last is the target's."""


class MakeDataset(io.ComfyNode):
    """Packs pictures into a parquet in ComfyUI's input folder and opens it as EDIT_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerMakeDataset",
            display_name="Make Edit Dataset (Folders)",
            search_aliases=["pack images", "image folder", "zip", "before and after", "training data"],
            description="Makes a dataset of pictures in folders or a zip. Pictures belong together by their names: "
            "target/NAME.png with control/NAME.png, or NAME_end.png with NAME_start.png. A caption is in NAME.txt "
            "beside them. What has no partner is named, and nothing is written.",
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder or zip of pictures. A relative path starts at ComfyUI's input folder.",
                ),
                io.String.Input(
                    "caption", default="", multiline=True, tooltip="Caption of every pair that has none of its own."
                ),
                *(io.String.Input(name, default="", tooltip=_role_tooltip(name)) for name in ROLES),
                io.String.Input(
                    "captions",
                    default="",
                    tooltip="CSV or JSON lines with a file_name and a caption. "
                    "Empty: metadata.csv or metadata.jsonl beside the pictures, if there is one.",
                ),
                io.Combo.Input(
                    "images",
                    options=["embedded", "paths"],
                    default="embedded",
                    tooltip="Put the pictures into the parquet, or only their paths.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the parquet, which is written to ComfyUI's input folder. Empty: the folder's.",
                ),
            ],
            advanced=("control_folder_2", "control_folder_3", "captions", "images", "name"),
            outputs=dataset_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, captions: str | None = None, **others: str) -> str | float:
        if folder is None or captions is None:
            return float("nan")  # of linked inputs the values are not known yet
        try:
            from ..trainer.packing.folder import folder_state

            source = _find(folder)
            states = [folder_state(source) if source.is_dir() else file_state(source), _state(_table(captions, source))]
            return " ".join(states)
        except (BadInput, OSError):
            return "not there"

    @classmethod
    @readable_errors()
    def execute(
        cls,
        folder: str,
        caption: str,
        captions: str,
        images: Literal["embedded", "paths"],
        name: str,
        **roles: str,
    ) -> io.NodeOutput:
        from ..trainer.config.columns import Columns
        from ..trainer.packing.pack import PackOptions, pack

        source = _find(folder)
        controls, target = _roles(roles)
        options = PackOptions(controls, target, _table(captions, source), caption, images)
        packing = pack(source, _parquet(name, source), options, replace="packed")
        packed = follow(packing, NodeDisplay(cls.hidden.unique_id).show)
        columns = Columns("caption", packed.controls, "target")
        made = note("info", "datasetMade", name=packed.path.name, n=packed.rows)
        return open_shown(cls.hidden.unique_id, packed.path, columns, made=made)


def _role_tooltip(role: str) -> str:
    number = role[-1] if role[-1].isdigit() else ""
    if role == "target_folder":
        return "Folder of the targets in it, or the end of their names, such as _after. Empty: target, or _end."
    usual = f"control_{number}, or _start{number}, if there is one" if number else "control, or _start"
    what = f"control image {number}" if number else "the control images"
    return f"Folder of {what} in it, or the end of their names, such as _before. Empty: {usual}."


def _roles(given: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """Folders of the control images and of the target. Raises BadInput for a gap between them."""
    *controls, target = (given.get(role, "").strip() for role in ROLES)
    named = [name for name in controls if name]
    if named != controls[: len(named)]:
        raise BadInput("control_folder: is empty, but that of a later control image is not; name them in their order.")
    return tuple(named), target


def _find(folder: str) -> Path:
    """Find the pictures. Raises BadInput."""
    if not folder.strip():
        raise BadInput("folder: is required but empty; name a folder or a zip of pictures in ComfyUI's input folder.")
    path = typed_path(folder.strip())
    place = input_folder() / path
    if path_kind(place) == "missing":
        raise BadInput(f"folder: {place} does not exist; name a folder or a zip of pictures.")
    return place


def _parquet(name: str, source: Path) -> Path:
    """Path of the parquet. Raises BadInput for a name that a file cannot have."""
    stem = name.strip().removesuffix(".parquet") or (source.stem if source.is_file() else source.resolve().name)
    if not is_folder_name(stem):
        raise BadInput(f'name: "{stem}" cannot be used; give a file name without any of < > : " / \\ | ? *')
    return input_folder() / f"{stem}.parquet"


def _table(captions: str, source: Path) -> str:
    """Path of the table of captions: in the input folder, or a name in the source."""
    text = captions.strip()
    return str(input_folder() / text) if text and path_kind(input_folder() / text) == "file" else text


def _state(path: str) -> str:
    try:
        return file_state(Path(path)) if path else ""
    except OSError:
        return "not there"
