"""Preview Training Samples: the sample images of a run, from the first step to the last."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui
from PIL import Image

from ..trainer.errors import BadInput
from ..trainer.training.run_folder import RunFolder
from .host import readable_errors
from .pil_images import grid, shrink, to_tensor
from .schema import node_schema
from .types import EditRun, FinishedRun


class PreviewSamples(io.ComfyNode):
    """Loads the sample images of a run folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="EditTrainerPreviewSamples",
            display_name="Preview Training Samples",
            search_aliases=["training progress", "sample grid"],
            description="The samples of a run: one row per prompt, with the control images first and then one "
            "column per step that has samples.",
            is_output_node=True,
            inputs=[EditRun.Input("run", tooltip="From Train Edit LoRA.")],
            outputs=[
                io.Image.Output("grid", tooltip="All samples in one image, each at most 512 pixels on a side."),
                io.Image.Output("images", tooltip="The samples of the last step, as a batch."),
            ],
        )

    @classmethod
    @readable_errors()
    def execute(cls, run: FinishedRun) -> io.NodeOutput:
        folder = RunFolder(run.folder)
        drawn = {step: files for step, files in folder.sample_files().items() if step <= run.steps}
        indices = [index for index in range(run.samples) if index in drawn.get(run.steps, {})]
        if not indices:
            raise BadInput(
                f"The run {run.folder} has no samples at its last step. Connect Sample Prompt nodes to Train Edit LoRA."
            )
        controls = {index: folder.control_files(index) for index in indices}
        most = max(map(len, controls.values()))
        rows = [
            [
                *map(_open, controls[index]),
                *[Image.new("RGB", (1, 1))] * (most - len(controls[index])),
                *(_open(files[index]) for files in drawn.values() if index in files),
            ]
            for index in indices
        ]
        sheet = to_tensor([grid([[shrink(picture) for picture in row] for row in rows])])
        return io.NodeOutput(sheet, to_tensor([row[-1] for row in rows]), ui=ui.PreviewImage(sheet, cls=cls))


def _open(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
