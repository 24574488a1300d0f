"""ComfyUI nodes: they wrap the trainer's functions, show events in the page, and map ComfyUI's folders and memory.

base_model     Load Edit Base Model
dataset        Load Edit Dataset
make_dataset   Make Edit Dataset (Folders)
add_example    Add Edit Example
params         Edit Training Params and Training Settings
request        Fine-tune Request and Save Fine-tune Request
samples        Sample Prompt
train          Train Edit LoRA
preview        Preview Training Samples
edit           Edit Image
native_model   Edit Model (as MODEL)
types          data types of the nodes' connections
schema         description of a node for ComfyUI
widgets        inputs made from the trainer's pydantic fields
ports          ComfyUI's CLIP and VAE as text encoder and image codec
kept_model     models that Edit Image keeps loaded
native_base    a base model opened by ComfyUI's own loader
model_files    base models in ComfyUI's model folders
model_info     description of a chosen base model
live_run       runs in progress, as the page shows them
saved_runs     runs in the output folder
run_snapshot   keys of the page's event and run routes
push_run       runs on the Hugging Face hub
routes         HTTP routes of the page
same_origin    guard of these routes
folders        ComfyUI's input, output and LoRA folders
host           cancelling, progress, memory and errors in ComfyUI
notes          messages that stand in a node
pil_images     conversion between IMAGE tensors and PIL

The training itself knows nothing of ComfyUI: the trainer never imports from here.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .add_example import AddExample
from .base_model import BaseModel
from .dataset import LoadDataset
from .edit import EditImage
from .make_dataset import MakeDataset
from .native_model import NativeModel
from .params import Params, Settings
from .preview import PreviewSamples
from .request import LoadRequest, SaveRequest
from .samples import Sample
from .train import Train


class EditTrainerExtension(ComfyExtension):
    """Entry point of the pack for ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order of a typical graph."""
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
            NativeModel,
            MakeDataset,
            AddExample,
        ]
