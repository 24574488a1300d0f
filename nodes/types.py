"""Data types of the connections between the pack's nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io

EditDataset = io.Custom("EDIT_DATASET")
"""A `trainer.data.dataset.EditDataset`."""
EditParams = io.Custom("EDIT_PARAMS")
"""A dict: the request's training_params without columns and samples."""
EditSamples = io.Custom("EDIT_SAMPLES")
"""A tuple of `trainer.config.request.SamplePrompt`."""
EditModel = io.Custom("EDIT_MODEL")
"""A `trainer.models.edit_model.EditModel`. It refers to files, to connected CLIP and VAE objects that the graph holds
anyway, and to what Edit Image keeps loaded, which ComfyUI's model management may push out."""
EditSettings = io.Custom("EDIT_SETTINGS")
"""A dict: RunSettings without seed, images_root and bad_rows."""
EditRun = io.Custom("EDIT_RUN")
"""A `FinishedRun`."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    steps: int
    samples: int
    """Number of sample prompts."""
