"""The nodes of the pack."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .base_model import BaseModel
from .dataset import LoadDataset
from .edit import EditImage
from .params import Params, Settings
from .preview import PreviewSamples
from .request import LoadRequest, SaveRequest
from .samples import Sample
from .train import Train


class EditTrainerExtension(ComfyExtension):
    """What ComfyUI asks the pack for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node, in the order of a graph."""
        return [
            LoadDataset,
            Params,
            Sample,
            BaseModel,
            Settings,
            Train,
            PreviewSamples,
            EditImage,
            LoadRequest,
            SaveRequest,
        ]
