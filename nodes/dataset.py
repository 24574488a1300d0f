"""Load Edit Dataset: opens and checks a parquet."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from comfy_api.latest import io

from ..trainer.config.columns import COLUMN_FIELDS, Columns
from ..trainer.config.request import FineTuneRequest, TrainingParams
from ..trainer.config.settings import RunSettings
from ..trainer.errors import BadInput, printable
from .folders import cache_folder, dataset_state, find_parquet
from .host import NodeDisplay, follow, readable_errors
from .notes import OUTPUT, Note, bad_rows_note, report_notes, send_notes
from .pil_images import grid, shrink, to_tensor
from .schema import node_schema
from .types import EditDataset
from .widgets import MASK_COLUMN, OPTIONAL_COLUMNS, columns_of, field_inputs, more_control_inputs

if TYPE_CHECKING:
    from ..trainer.data.dataset import EditDataset as Dataset

PREVIEW_ROWS = 4
"""Rows in the preview output; part of the node's behaviour in saved graphs."""


class LoadDataset(io.ComfyNode):
    """Opens a parquet as EDIT_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerLoadDataset",
            display_name="Load Edit Dataset (Parquet)",
            search_aliases=["training data", "image pairs", "before and after", "parquet"],
            description="Opens a parquet of control images, captions and target images, and checks its rows.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                *field_inputs(FineTuneRequest, ("resource",)),
                *field_inputs(TrainingParams, COLUMN_FIELDS),
                *field_inputs(RunSettings, ("images_root", "bad_rows")),
                *more_control_inputs(),
                *field_inputs(RunSettings, ("allow_no_control", MASK_COLUMN), optional=True),
            ],
            advanced=("images_root", "bad_rows", "allow_no_control", MASK_COLUMN),
            outputs=dataset_outputs(),
        )

    @classmethod
    def fingerprint_inputs(
        cls, resource: str | None = None, images_root: str | None = None, **others: str
    ) -> str | float:
        required = [resource, images_root, *(others.get(field) for field in COLUMN_FIELDS)]
        more = [others[field] for field in OPTIONAL_COLUMNS if field in others]
        if resource is None or images_root is None or None in (*required, *more):
            return float("nan")  # of linked inputs the values are not known yet
        try:
            return dataset_state(find_parquet(resource), columns_of(others), images_root)
        except (BadInput, OSError):
            return "not there"

    @classmethod
    def validate_inputs(
        cls,
        resource: str | None = None,
        caption_column: str | None = None,
        control_image_column: str | None = None,
        image_column: str | None = None,
        control_image_column_2: str | None = None,
        control_image_column_3: str | None = None,
        mask_column: str | None = None,
    ) -> bool | str:
        """Check the parquet and its columns before anything runs; linked inputs are None."""
        from ..trainer.data.dataset import check_columns
        from ..trainer.data.hub_files import NotDownloaded

        columns = dict(zip(COLUMN_FIELDS, (caption_column, control_image_column, image_column), strict=True))
        more = (control_image_column_2, control_image_column_3, mask_column)
        columns |= {field: column or None for field, column in zip(OPTIONAL_COLUMNS, more, strict=True)}
        try:
            if resource is not None:
                known = {field: column for field, column in columns.items() if column is not None}
                check_columns(known, find_parquet(resource))
        except NotDownloaded:
            return True
        except BadInput as error:
            return printable(str(error))
        return True

    @classmethod
    @readable_errors()
    def execute(
        cls,
        resource: str,
        images_root: str,
        bad_rows: Literal["stop", "skip"],
        allow_no_control: bool = False,
        **columns: str,
    ) -> io.NodeOutput:
        path = find_parquet(resource, download=True)
        return open_shown(
            cls.hidden.unique_id, path, columns_of(columns), images_root, bad_rows, allow_no_control=allow_no_control
        )


def dataset_outputs() -> list[io.Output]:
    """Make the outputs of a node that opens a dataset."""
    return [
        EditDataset.Output("dataset", tooltip="For Train Edit LoRA."),
        io.Image.Output("preview", tooltip="Control and target images of the first rows, side by side."),
        io.String.Output("report", tooltip="Sizes, bad rows and warnings about the dataset."),
    ]


def open_shown(
    node_id: str,
    path: Path,
    columns: Columns,
    images_root: str = "",
    bad_rows: Literal["stop", "skip"] = "stop",
    allow_no_control: bool = False,
    made: Note | None = None,
) -> io.NodeOutput:
    """Open and check a dataset, with progress and notes in a node; returns `dataset_outputs`. `made` is a note on what
    the node has written."""
    from ..trainer.data.images import decode_image

    dataset = open_with_notes(node_id, path, columns, images_root, bad_rows, allow_no_control)
    pairs = [
        grid([[shrink(decode_image(dataset.fetch(image))) for image in (*row.controls, row.target)]])
        for row in islice(dataset, PREVIEW_ROWS)
    ]
    notes = report_notes(dataset.report) + ([made] if made else [])
    return io.NodeOutput(dataset, to_tensor(pairs), str(dataset.report), ui={OUTPUT: notes})


def open_with_notes(
    node_id: str,
    path: Path,
    columns: Columns,
    images_root: str = "",
    bad_rows: Literal["stop", "skip"] = "stop",
    allow_no_control: bool = False,
) -> Dataset:
    """Open and check a dataset, with progress in a node, and with a note there on rows that cannot be used. Raises
    BadInput."""
    from ..trainer.data.dataset import open_dataset
    from ..trainer.data.downloads import Downloads
    from ..trainer.data.report import BadRows

    opening = open_dataset(
        path,
        columns,
        images_root=images_root,
        bad_rows=bad_rows,
        allow_no_control=allow_no_control,
        downloads=Downloads(cache_folder() / "downloads"),
    )
    try:
        return follow(opening, NodeDisplay(node_id).show)
    except BadRows as error:
        send_notes(node_id, [bad_rows_note(error.report)])
        raise
