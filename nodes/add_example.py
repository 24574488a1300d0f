"""Add Edit Example: appends pictures of the graph to a dataset in ComfyUI's input folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io

from ..trainer.errors import BadInput
from .dataset import dataset_outputs, open_shown
from .folders import dataset_state, input_folder, is_folder_name
from .host import readable_errors
from .notes import note
from .pil_images import to_pil
from .schema import node_schema
from .types import EditDataset

if TYPE_CHECKING:
    from PIL import Image

    from ..trainer.data.dataset import EditDataset as Dataset


class AddExample(io.ComfyNode):
    """Appends examples to a dataset and opens it as EDIT_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerAddExample",
            display_name="Add Edit Example",
            search_aliases=["append to dataset", "save pair", "collect examples", "before and after"],
            description="Adds control image, target and caption to a dataset in ComfyUI's input folder, which it makes "
            "if there is none. What is in it already is not added again. Batches and lists add several examples.",
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("control_image", tooltip="Control image: the input of the edit."),
                io.Image.Input("target_image", tooltip="Target: the result that the edit should have."),
                io.String.Input("caption", default="", multiline=True, tooltip="Caption: what the edit does."),
                io.String.Input(
                    "name",
                    default="my_edits",
                    tooltip="Name of the dataset, a folder in ComfyUI's input folder.",
                ),
                *(
                    io.Image.Input(
                        f"control_image_{number}",
                        optional=True,
                        tooltip=f"Control image {number}, for models that take several.",
                    )
                    for number in (2, 3)
                ),
                EditDataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="Output of another Add Edit Example of this name, after which this one adds its own.",
                ),
            ],
            outputs=dataset_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, name: list[str] | None = None, **others: object) -> str | float:
        if not name or name[0] is None:
            return float("nan")  # of linked inputs the values are not known yet
        from ..trainer.config.columns import Columns
        from ..trainer.packing.examples import PARQUET

        try:
            parquet = _folder(name[0]) / PARQUET
            return dataset_state(parquet, Columns("caption", ("control",), "target"))
        except (BadInput, OSError):
            return "not there"

    @classmethod
    @readable_errors()
    def execute(
        cls,
        control_image: list[torch.Tensor],
        target_image: list[torch.Tensor],
        caption: list[str],
        name: list[str],
        control_image_2: list[torch.Tensor] | None = None,
        control_image_3: list[torch.Tensor] | None = None,
        dataset: list[Dataset] | None = None,
    ) -> io.NodeOutput:
        from ..trainer.packing.examples import Example, add_examples

        if len(set(name)) != 1:
            raise BadInput("name: is a list of several names; add to one dataset at a time.")
        folder = _folder(name[0])
        if any(before.path.parent != folder for before in dataset or ()):
            raise BadInput(f'dataset: is not that of an Add Edit Example with the name "{name[0]}".')
        given = {"control_image": control_image, "control_image_2": control_image_2, "control_image_3": control_image_3}
        controls = {field: _pictures(images) for field, images in given.items() if images}
        targets = _pictures(target_image)
        captions = caption * len(targets) if len(caption) == 1 else caption
        _check_counts({"target_image": len(targets), "caption": len(captions)}, controls)
        rows = zip(zip(*controls.values(), strict=True), targets, captions, strict=True)
        added = add_examples(folder, [Example(*row) for row in rows])
        code = "examplesAdded" if added.new else "nothingNew"
        made = note("info", code, name=f"{folder.name}/{added.parquet.name}", n=added.rows, new=added.new)
        return open_shown(cls.hidden.unique_id, added.parquet, added.columns, made=made)


def _folder(name: str) -> Path:
    """Folder of a dataset. Raises BadInput for a name that a folder cannot have."""
    if not is_folder_name(name.strip()):
        raise BadInput(f'name: "{name}" cannot be used; give one folder name without any of < > : " / \\ | ? *')
    return input_folder() / name.strip()


def _pictures(images: Sequence[torch.Tensor]) -> list[Image.Image]:
    """Convert a list of IMAGEs, each [B, H, W, C] float32, to pictures."""
    return [picture for batch in images for picture in to_pil(batch)]


def _check_counts(counts: dict[str, int], controls: dict[str, list[Image.Image]]) -> None:
    """Raise BadInput unless there are as many control images as targets and captions."""
    counts = counts | {field: len(pictures) for field, pictures in controls.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{field} {count}" for field, count in counts.items())
        raise BadInput(f"There must be as many of each input, and one caption or as many, but there are: {listed}.")
