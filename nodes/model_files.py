"""Transformers in ComfyUI's model folders, and the one that a base model is opened with."""

from __future__ import annotations

import json
import logging
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ..trainer.errors import BadInput
from ..trainer.families.registry import FAMILIES, base_model_names, find_family, find_variant
from ..trainer.models.pipeline_folder import INDEX, folder_variant
from .folders import file_state, output_folder

if TYPE_CHECKING:
    from ..trainer.models.edit_model import EditModel
    from ..trainer.models.types import Ports

AUTO = "auto"
FILES = "diffusion_models"
"""ComfyUI's folder of single-file transformers."""
FOLDERS = "diffusers"
"""ComfyUI's folder of models in diffusers' pipeline layout."""


_IMPORTING = threading.Lock()


def import_models() -> None:
    """Import what opens, plans and trains models, one thread at a time.

    The page asks about a model while a graph runs. Where two threads import modules that import each other, as those of
    diffusers do, Python gives one of them a half-made module.
    """
    with _IMPORTING:
        for module in ("models.edit_model", "memory.planner", "training.loop"):
            import_module(f"..trainer.{module}", __package__)


def transformer_options() -> list[str]:
    """Options of the transformer input: auto, the files of models/diffusion_models, and the edit models of
    models/diffusers as `diffusers/<name>`."""
    return [AUTO, *_file_names(), *(f"{FOLDERS}/{folder.name}" for folder in edit_folders())]


def present_base_model() -> str:
    """Name of the first base model whose weights are on the disk, complete; else of the first embedded one."""
    names = base_model_names()
    embedded = [name for name in names if find_variant(name).embedded]
    for name in names:
        if name not in embedded and (_folder_of(name, find_family(name).pipeline_class) or _in_hub_cache(name)):
            return name
    return embedded[0]


def state_of(choice: str) -> str:
    """A text that changes whenever the chosen files do."""
    names = transformer_options()[1:] if choice == AUTO else [choice]
    states = [file_state(path / INDEX if path.is_dir() else path) for path in map(_path_of, names) if path]
    return "\n".join(states)


def check_connected(base_model: str, choice: str, clip: bool, vae: bool) -> bool:
    """True if clip and vae are connected. Raises BadInput if only one is, or if the base model accepts none."""
    if clip != vae:
        missing, there = ("vae", "clip") if clip else ("clip", "vae")
        raise BadInput(f"{missing}: is not connected, but {there} is; connect both or neither.")
    if find_variant(base_model).embedded and (clip or choice != AUTO):
        raise BadInput(f'{base_model} is complete in itself: choose transformer "{AUTO}" and disconnect clip and vae.')
    return clip


def open_choice(base_model: str, choice: str, connected: bool, ports: Ports | None = None) -> EditModel:
    """Open the base model with the chosen transformer.

    `auto` looks in models/diffusers, then in the Hugging Face cache, then, if clip and vae are `connected`, for an
    unambiguous file in models/diffusion_models, then on the Hugging Face hub. Without the `ports` of a connected clip
    and vae the model can be described but not trained. Raises BadInput for a missing file or another model's.
    """
    import_models()
    from ..trainer.models.edit_model import open_model
    from ..trainer.models.model_files import ModelFiles

    pipeline = find_family(base_model).pipeline_class
    if choice == AUTO:
        folder = _folder_of(base_model, pipeline)
        if folder is None and connected and not _in_hub_cache(base_model):
            found = _sure_file(base_model, ports)
            if found is not None:
                return found
        return open_model(base_model, folder, ports=ports)
    path = _path_of(choice)
    if path is None:
        raise BadInput(f'transformer: "{choice}" is no longer in ComfyUI\'s model folders; choose another.')
    if not path.is_dir():
        return open_model(base_model, files=ModelFiles(transformer=path), ports=ports)
    if _pipeline_of(path) != pipeline:
        raise BadInput(f'transformer: "{choice}" is a {_pipeline_of(path)}; {base_model} is a {pipeline}.')
    return open_model(base_model, path, ports=ports)


def edit_folders() -> list[Path]:
    """Folders of models/diffusers with the pipeline of a supported family."""
    children = [child for root in folder_paths.get_folder_paths(FOLDERS) if Path(root).is_dir() for child in _in(root)]
    pipelines = {info.pipeline_class for info in FAMILIES}
    return [child for child in children if _pipeline_of(child) in pipelines]


def _in(root: str) -> list[Path]:
    return sorted(child for child in Path(root).iterdir() if child.is_dir())


def _pipeline_of(folder: Path) -> str:
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8")).get("_class_name", "")
    except (OSError, ValueError, AttributeError):
        return ""


def _file_names() -> list[str]:
    """Names of the files that ComfyUI lists, and of GGUF files, which it does not."""
    names = list(folder_paths.get_filename_list(FILES))
    for root in folder_paths.get_folder_paths(FILES):
        if Path(root).is_dir():
            found, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
            names += sorted(name for name in found if name.lower().endswith(".gguf") and name not in names)
    return names


def _path_of(choice: str) -> Path | None:
    """The file or folder of a choice; None if it does not exist."""
    for folder in edit_folders():
        if choice == f"{FOLDERS}/{folder.name}":
            return folder
    path = folder_paths.get_full_path(FILES, choice)
    return None if path is None else Path(path)


def _folder_of(base_model: str, pipeline: str) -> Path | None:
    """The folder of this pipeline in models/diffusers, preferably one named like the base model."""
    name = base_model.rpartition("/")[2].lower()
    folders = [folder for folder in edit_folders() if _pipeline_of(folder) == pipeline and _may_be(base_model, folder)]
    return min(folders, key=lambda folder: (not folder.name.lower().endswith(name), folder.name), default=None)


def _may_be(base_model: str, folder: Path) -> bool:
    """False for a folder of another variant of the base model's family."""
    found = folder_variant(folder, base_model)
    return found is None or found.name == base_model


def _in_hub_cache(base_model: str) -> bool:
    """True if all files of the transformer are in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(base_model, "transformer/config.json")
    if not isinstance(config, str):
        return False
    folder, name = Path(config).parent, "diffusion_pytorch_model.safetensors"
    index = folder / f"{name}.index.json"
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else {name}
    return all((folder / shard).is_file() for shard in shards)


def _sure_file(base_model: str, ports: Ports | None) -> EditModel | None:
    """The base model from the first file that fits and raises no warnings."""
    from ..trainer.models.edit_model import open_model
    from ..trainer.models.model_files import ModelFiles

    for path in filter(None, map(_path_of, _file_names())):
        if output_folder() in path.parents:
            continue  # A fine-tuned model is used as a base only if it is chosen.
        try:
            model = open_model(base_model, files=ModelFiles(transformer=path), ports=ports)
        except BadInput:
            continue
        if not model.warnings():
            logging.info("%s: the transformer is %s", base_model, path)
            return model
    return None
