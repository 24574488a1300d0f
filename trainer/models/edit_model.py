"""EditModel: which weights, and how to load them. Nothing is read before it is used."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError

from ..config.settings import Precision
from ..errors import BadInput, RunFailed
from ..single_file.fingerprint import files_in, fingerprint_files
from ..single_file.text_encoder import load_encoder
from ..single_file.tokenizer import find_tokenizers, load_tokenizers
from ..single_file.vae import load_vae
from . import CONFIGS, family_class
from .family import Family
from .model_files import NO_FILES, ModelFiles, check_files, warnings_about_files
from .transformer import load_folder, load_single_file, open_transformer
from .types import ImageCodec, Part, Ports, TextEncoder

EMBEDDED = Path(__file__).parent.parent / "tiny"


FILE_TYPES = ("json", "safetensors", "txt", "model", "jinja")


@dataclass(frozen=True)
class EditModel:
    """A handle: it loads when asked, and what it loaded belongs to the caller.

    Every `load_*` raises BadInput for files that are missing, damaged or not this family's, and RunFailed for a
    download that cannot be done.
    """

    base_model: str
    folder: Path | None
    """A folder in diffusers' pipeline layout; None: the hub's repository of that name, by way of its cache."""
    policy: str = "diffusers"
    weights: Path | None = None
    """An exported transformer whose weights `load_transformer` takes in place of the folder's."""
    adapter: Path | Mapping[str, torch.Tensor] | None = None
    """An exported LoRA, its file or its tensors, that `load_transformer` adds to the base."""
    adapter_strength: float = 1.0
    files: ModelFiles = NO_FILES
    ports: Ports | None = None
    """What a host has loaded itself, in the place of the folder's text encoder and VAE."""

    @cached_property
    def family(self) -> Family:
        """The base model's family at its scale, with its VAE's latent statistics."""
        family = family_class(self.base_model)
        own_vae = self.folder is not None and not self.files.vae and self.ports is None
        path = (self.folder if own_vae else CONFIGS / family.name) / "vae" / "config.json"
        with _readable(f"{self.base_model}: {path}"):
            vae_config = json.loads(path.read_text(encoding="utf-8"))
        return family(family.variants[self.base_model], vae_config, self.policy)

    def fingerprint(self, part: Part) -> str:
        """Names a part's weights and settings without loading it; the same as the loaded part's own."""
        if self.ports is not None and part != "transformer":
            return (self.ports.codec if part == "vae" else self.ports.text_encoder).fingerprint
        settings = (self.family.name, self.family.variant.text_length)
        files = self.files.of(part)
        if names := self._from_folder(part):
            files |= files_in(self._part(part), names)
        return fingerprint_files(files, *settings)

    def warnings(self) -> list[str]:
        """What about the files makes one doubt that they are what they should be, in sentences."""
        return warnings_about_files(self.family, self.base_model, self.files)

    def transformer_config(self) -> Mapping[str, Any]:
        """diffusers' config of the base's transformer: by its file's shapes, from its folder, or as published."""
        if file := self.files.transformer:
            return self.family.transformer_config(open_transformer(file).shapes)
        path = (self.folder or CONFIGS / self.family.name) / "transformer" / "config.json"
        with _readable(f"{self.base_model}: {path}"):
            return json.loads(path.read_text(encoding="utf-8"))

    def transformer_parameters(self) -> int:
        """How many weights the transformer has, without loading it."""
        return sum(p.numel() for p in self.empty_transformer().parameters())

    def empty_transformer(self) -> torch.nn.Module:
        """The transformer's modules without storage, on the meta device."""
        return self.family.empty_transformer(self.transformer_config())

    def with_adapter(self, adapter: Path | Mapping[str, torch.Tensor], strength: float = 1.0) -> EditModel:
        """The same base with an exported LoRA, and no other."""
        return replace(self, adapter=adapter, adapter_strength=strength)

    def with_weights(self, weights: Path) -> EditModel:
        """The same base with the transformer that a full fine-tune has exported."""
        return replace(self, weights=weights)

    @property
    def is_trained(self) -> bool:
        """Whether it is more than a base: it carries the result of a training."""
        return self.adapter is not None or self.weights is not None

    def load_transformer(
        self, device: torch.device | str, dtype: torch.dtype, precision: Precision | None = None
    ) -> torch.nn.Module:
        """The transformer in eval mode without gradients, the adapter on it.

        With a quantized `precision` the large weights are quantized while they are read; others, and None, change
        nothing. Those of a quantized file stay as they are stored.
        """
        if file := self.weights or self.files.transformer:
            with _readable(f"The transformer {file}"):
                config = self.transformer_config() if self.weights else None
                transformer = load_single_file(self.family, file, dtype, config, precision)
        else:
            folder = self._part("transformer")
            with _readable(f"The transformer of {self.base_model} in {folder}"):
                config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
                transformer = load_folder(self.family, folder / "transformer", dtype, config, precision)
        transformer.eval().requires_grad_(False).to(device)
        return transformer

    def load_text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
        """The text encoder with its tokenizers; a host's port decides on its device and number format itself."""
        if self.ports is not None:
            return self.ports.text_encoder
        folder = self._part("text") if self._from_folder("text") else None
        files = self.files.of("text")
        with _readable(f"The text encoder of {self.base_model} in {folder or ' and '.join(map(str, files.values()))}"):
            loaded = self._loaded_text(dtype, alone=folder is None) if files else {}
            return self.family.load_text_encoder(folder, device, dtype, self.fingerprint("text"), loaded)

    def load_codec(self, device: torch.device | str, dtype: torch.dtype) -> ImageCodec:
        """The VAE; a host's port decides on its device and number format itself."""
        if self.ports is not None:
            return self.ports.codec
        if file := self.files.vae:
            with _readable(f"The VAE {file}"):
                vae = load_vae(self.family.vae_file, file, CONFIGS / self.family.name / "vae", dtype)
            return self.family.codec_of(vae, device, self.fingerprint("vae"))
        folder = self._part("vae")
        with _readable(f"The VAE of {self.base_model} in {folder}"):
            return self.family.load_codec(folder, device, dtype, self.fingerprint("vae"))

    def load_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The sampler's schedule."""
        folder = self.folder or CONFIGS / self.family.name
        with _readable(f"The scheduler of {self.base_model} in {folder}"):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)

    def _loaded_text(self, dtype: torch.dtype, alone: bool) -> dict[str, Any]:
        """The text encoders that are files, and, where nothing of the text comes from a folder, the tokenizers."""
        family, tokenizers = self.family, {}
        if alone:
            places = find_tokenizers(family.tokenizers, self.base_model, self.files.tokenizers, self.folder)
            tokenizers = load_tokenizers(family.tokenizers, places)
        encoders = {}
        for name, path in self.files.of("text").items():
            encoder = family.text_encoders[name]
            published = CONFIGS / family.name / name
            encoders[name] = load_encoder(encoder, path, published, dtype, tokenizers.get(encoder.tokenizer))
        return encoders | tokenizers

    def _from_folder(self, part: Part) -> tuple[str, ...]:
        """The folders of a part that are read from the pipeline's layout; none when files are the whole part."""
        files, names = self.files.of(part), self.family.parts[part]
        weights = self.family.text_encoders if part == "text" else names
        return () if set(weights) <= files.keys() else tuple(name for name in names if name not in files)

    def _part(self, part: Part) -> Path:
        """The folder of the pipeline's layout, with all files in it that the part is read from."""
        names = self._from_folder(part)
        patterns = [f"{name}/*.{kind}" for name in names for kind in FILE_TYPES]
        folder = self._local("model_index.json", "scheduler/*.json", *patterns)
        for name in names:
            if not (folder / name).is_dir():
                raise BadInput(f"{self.base_model}: the folder {folder / name} is missing; the model is incomplete.")
        return folder

    def _local(self, *patterns: str) -> Path:
        if self.folder is not None:
            return self.folder
        try:
            return Path(snapshot_download(self.base_model, allow_patterns=list(patterns)))
        except GatedRepoError as error:
            raise BadInput(
                f"{self.base_model} is gated: accept its licence at https://huggingface.co/{self.base_model}, "
                "then log in with `hf auth login`, or put your token into the environment variable HF_TOKEN."
            ) from error
        except Exception as error:  # A download fails in as many ways as there are networks and HTTP libraries.
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise RunFailed(f"The disk is too full to download {self.base_model}; free some space.") from error
            raise RunFailed(
                f"{self.base_model} is not complete on this machine and cannot be downloaded now: {error}\n"
                f"Check the connection, or fetch it beforehand with `hf download {self.base_model}`."
            ) from error


def open_model(
    base_model: str,
    folder: Path | None = None,
    policy: str = "auto",
    files: ModelFiles | None = None,
    ports: Ports | None = None,
) -> EditModel:
    """A handle on a base model: the embedded one for a tiny name, else the hub's, or any other of its family in
    `folder` (diffusers' pipeline layout); single files and ports take the place of their parts of it.

    The policy `auto` is `comfyui` with ports, else `diffusers`; with `diffusers` ports are left alone. Raises BadInput
    for an unknown name, a folder that is not a pipeline's, a file that is not this model's, or a policy that needs what
    is not here.
    """
    family_class(base_model)
    if policy == "comfyui" and ports is None:
        raise BadInput(
            'conditioning: "comfyui" needs the CLIP and VAE of a ComfyUI graph, and there are none here; '
            'use "auto" or "diffusers".'
        )
    ports = None if policy == "diffusers" else ports
    if folder is None and base_model.startswith("tiny/"):
        folder = EMBEDDED / base_model.removeprefix("tiny/")
    if folder is not None and not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder} is not a model in diffusers' layout: it has no model_index.json.")
    files = files or NO_FILES
    model = EditModel(base_model, folder, "comfyui" if ports else "diffusers", files=files, ports=ports)
    if files == NO_FILES:
        return model
    return replace(model, files=check_files(model.family, base_model, files, folder))


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Failures to read model files as BadInput."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BadInput(f"{what} cannot be loaded: {error}") from error
