"""EditModel, a handle on a base model's files and how to load them; nothing is read before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from ..config.settings import Precision
from ..errors import BadInput
from ..families.info import Component, Policy
from ..families.registry import find_variant
from ..single_file.fingerprint import files_in, fingerprint_files
from ..single_file.load_module import OneDevice, WeightSink
from ..single_file.text_encoder import load_encoder
from ..single_file.tokenizer import find_tokenizers, load_tokenizers
from ..single_file.vae import load_vae
from .family import Family, family_class
from .model_files import NO_FILES, ModelFiles, check_files, warnings_about_files
from .pipeline_folder import check_pipeline, download, read_config
from .transformer import load_folder, load_single_file, open_transformer, weights_files
from .types import ImageCodec, Ports, TextEncoder


@dataclass(frozen=True)
class EditModel:
    """A base model's files, with the result of a training on top; holds no weights.

    Every `load_*` raises BadInput for files that are missing, damaged or of another family, and RunFailed if a download
    fails.
    """

    base_model: str
    folder: Path | None
    """A folder in diffusers' pipeline layout; None: the Hugging Face repository of that name, through its cache."""
    policy: Policy = "diffusers"
    weights: Path | None = None
    """An exported transformer that replaces the base's."""
    adapter: Path | Mapping[str, torch.Tensor] | None = None
    """An exported LoRA, as a file or as tensors A [rank, in] and B [out, rank] of any float dtype."""
    adapter_strength: float = 1.0
    files: ModelFiles = NO_FILES
    ports: Ports | None = None
    """Text encoder and VAE loaded by a host program, in place of the folder's."""
    longest_caption: int = 0
    """Tokens of the longest caption to be encoded, for memory estimates; 0: not known."""
    kept: object | None = field(default=None, compare=False, repr=False)
    """Components that a host program keeps loaded for this model and its trained copies, for as long as they live."""

    @cached_property
    def family(self) -> Family:
        """The base model's family in its variant, with its VAE's latent statistics."""
        family = family_class(self.base_model, self.policy)
        folder = None if self.files.vae or self.ports else self.folder_of("vae")
        variant = find_variant(self.base_model)
        made = family(variant, read_config(folder or variant.configs or family.info.configs, "vae"))
        made.longest_caption = self.longest_caption
        return made

    def folder_of(self, subfolder: str) -> Path | None:
        """The local folder in pipeline layout that a subfolder is read from: an embedded model may share another's.
        None: the Hugging Face repository."""
        shared = find_variant(self.base_model).shared_folder
        if self.folder is None or not shared or (self.folder / subfolder).is_dir():
            return self.folder
        return self.folder.parent / shared

    def fingerprint(self, component: Component) -> str:
        """Digest of a component's weights and settings, without loading it; equal to the loaded component's own."""
        if self.ports is not None and component != "transformer":
            return (self.ports.codec if component == "vae" else self.ports.text_encoder).fingerprint
        settings = (self.family.info.name, self.family.variant.text_length)
        files = self.files.of(component)
        if subfolders := self._subfolders(component):
            files |= files_in(self._component_folder(component), subfolders)
        return fingerprint_files(files, *settings)

    def file_states(self) -> dict[Path, tuple[int, int]]:
        """Size and modification time of every local file that the components are read from; reads none of them.

        Files of the Hugging Face hub are left out: they never change. Raises BadInput for a file that is gone.
        """
        paths = {self.weights} if self.weights else set()
        components: tuple[Component, ...] = ("transformer", "vae", "text")
        for component in components if self.ports is None else components[:1]:
            paths |= set(self.files.of(component).values())
            subfolders = self._subfolders(component)
            if subfolders and (folder := self.folder_of(subfolders[0])):
                paths |= set(files_in(folder, subfolders).values())
        with _readable(f"The model {self.base_model}"):
            states = {path: path.stat() for path in paths}
        return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}

    def warnings(self) -> list[str]:
        """Reasons to doubt that the files are the base model's, one sentence each."""
        return warnings_about_files(self.family, self.base_model, self.files, self.folder)

    def transformer_config(self) -> Mapping[str, Any]:
        """The diffusers config of the base's transformer: from its file's shapes, its folder, or as published."""
        if file := self.files.transformer:
            return self.family.transformer_config(open_transformer(file).shapes)
        config = read_config(self.folder or self.family.configs, "transformer")
        return config if self.folder else self.family.with_options(config)

    def transformer_parameters(self) -> int:
        """Number of the transformer's parameters, without loading it."""
        return sum(p.numel() for p in self.empty_transformer().parameters())

    def empty_transformer(self) -> torch.nn.Module:
        """The transformer without storage, on the meta device."""
        return self.family.empty_transformer(self.transformer_config())

    def with_adapter(self, adapter: Path | Mapping[str, torch.Tensor], strength: float = 1.0) -> EditModel:
        """A copy with this exported LoRA in place of any other; its tensors are [rank, in] and [out, rank] of any float
        dtype."""
        return replace(self, adapter=adapter, adapter_strength=strength)

    def with_weights(self, weights: Path) -> EditModel:
        """A copy with the exported transformer of a full fine-tune."""
        return replace(self, weights=weights)

    @property
    def is_trained(self) -> bool:
        """True if it carries the result of a training."""
        return self.adapter is not None or self.weights is not None

    def transformer_files(self) -> list[Path]:
        """The files that `load_transformer` reads: a single file, or a folder's shards, downloaded if need be."""
        if file := self.weights or self.files.transformer:
            return [file]
        return weights_files(self._component_folder("transformer") / "transformer")

    def load_transformer(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        precision: Precision | None = None,
        sink: WeightSink | None = None,
    ) -> torch.nn.Module:
        """Load the transformer to the device, or where `sink` says, in eval mode without gradients; the adapter is not
        applied.

        With a quantized `precision` the large weights are quantized while they are read; those of a quantized file stay
        as they are stored.
        """
        sink = sink or OneDevice(device)
        if file := self.weights or self.files.transformer:
            with _readable(f"The transformer {file}"):
                config = self.transformer_config() if self.weights else None
                transformer = load_single_file(self.family, file, dtype, config, precision, sink)
        else:
            folder = self._component_folder("transformer")
            config = read_config(folder, "transformer")
            with _readable(f"The transformer of {self.base_model} in {folder}"):
                transformer = load_folder(self.family, folder / "transformer", dtype, config, precision, sink)
        return transformer.eval().requires_grad_(False)

    def load_text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
        """Load the text encoder with its tokenizers; a host's port ignores `device` and `dtype`."""
        if self.ports is not None:
            return self.ports.text_encoder
        folder = self._component_folder("text") if self._subfolders("text") else None
        files = self.files.of("text")
        with _readable(f"The text encoder of {self.base_model} in {folder or ' and '.join(map(str, files.values()))}"):
            loaded = self._loaded_text(dtype, alone=folder is None) if files else {}
            return self.family.load_text_encoder(folder, device, dtype, self.fingerprint("text"), loaded)

    def load_tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Load the text encoder's tokenizers without its weights, by subfolder; a host's port names its own."""
        if self.ports is not None:
            return self.ports.text_encoder.tokenizers()
        tokenizers = self.family.tokenizers
        if self._subfolders("text"):
            folder = self._component_folder("text")
            places = {name: folder / name for name in tokenizers}
        else:
            places = find_tokenizers(tokenizers, self.base_model, self.files.tokenizers, self.folder)
        return load_tokenizers(tokenizers, places)

    def load_codec(self, device: torch.device | str, dtype: torch.dtype) -> ImageCodec:
        """Load the VAE; a host's port ignores `device` and `dtype`."""
        if self.ports is not None:
            return self.ports.codec
        if file := self.files.vae:
            with _readable(f"The VAE {file}"):
                vae = load_vae(self.family.vae_file, file, self.family.configs / "vae", dtype)
            return self.family.wrap_vae(vae, device, self.fingerprint("vae"))
        folder = self._component_folder("vae")
        with _readable(f"The VAE of {self.base_model} in {folder}"):
            return self.family.load_codec(folder, device, dtype, self.fingerprint("vae"))

    def load_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Load the sampler's schedule."""
        folder = self.folder_of("scheduler") or self.family.configs
        with _readable(f"The scheduler of {self.base_model} in {folder}"):
            scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
                folder, subfolder="scheduler", local_files_only=True
            )
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        return scheduler

    def _loaded_text(self, dtype: torch.dtype, alone: bool) -> dict[str, Any]:
        """The text encoders given as files, and the tokenizers if nothing of the text comes from a folder."""
        family, tokenizers = self.family, {}
        if alone:
            places = find_tokenizers(family.tokenizers, self.base_model, self.files.tokenizers, self.folder)
            tokenizers = load_tokenizers(family.tokenizers, places)
        encoders = {}
        for name, path in self.files.of("text").items():
            encoder = family.text_encoders[name]
            published = family.configs / name
            encoders[name] = load_encoder(encoder, path, published, dtype, tokenizers.get(encoder.tokenizer))
        return encoders | tokenizers

    def _subfolders(self, component: Component) -> tuple[str, ...]:
        """Subfolders of the pipeline layout that a component is read from; none if files are all of it."""
        files, names = self.files.of(component), self.family.info.subfolders[component]
        weights = self.family.info.text_encoders if component == "text" else names
        return () if set(weights) <= files.keys() else tuple(name for name in names if name not in files)

    def _component_folder(self, component: Component) -> Path:
        """The folder in pipeline layout, with all files of a component downloaded."""
        names = self._subfolders(component)
        folder = self.folder_of(names[0]) or download(self.base_model, names)
        for name in names:
            if not (folder / name).is_dir():
                raise BadInput(f"{self.base_model}: the folder {folder / name} is missing; the model is incomplete.")
        return folder


def open_model(
    base_model: str,
    folder: Path | None = None,
    policy: str = "auto",
    files: ModelFiles | None = None,
    ports: Ports | None = None,
) -> EditModel:
    """Open a base model: from `folder` (diffusers' pipeline layout), embedded, or on the Hugging Face hub; single files
    and ports take the place of their components.

    The policy `auto` is `comfyui` with ports, else `diffusers`, which ignores ports. Raises BadInput for an unknown
    name, a folder without a pipeline, a file of another model, or the policy `comfyui` without ports.
    """
    variant = find_variant(base_model)
    if policy == "comfyui" and ports is None:
        raise BadInput(
            'conditioning: "comfyui" needs the CLIP and VAE of a ComfyUI graph, and there are none here; '
            'use "auto" or "diffusers".'
        )
    ports = None if policy == "diffusers" else ports
    folder = folder or variant.folder
    files = files or NO_FILES
    if folder is not None:
        check_pipeline(folder, base_model, with_transformer=files.transformer is None)
    model = EditModel(base_model, folder, "comfyui" if ports else "diffusers", files=files, ports=ports)
    if files == NO_FILES:
        return model
    return replace(model, files=check_files(model.family, base_model, files, folder))


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Context in which failures to read model files become BadInput."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadInput(f"{what} cannot be loaded: {error}") from error
