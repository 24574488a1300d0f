"""Types of a model family's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Component = Literal["transformer", "vae", "text"]
"""A component of a base model that is loaded and moved between devices as one; `text` includes the tokenizers."""


Policy = Literal["diffusers", "comfyui"]
"""Whose image resizing and text templates are followed."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of weights file, recognized by the names of its tensors."""

    description: str
    """The kind in words, with its article, for messages."""
    patterns: tuple[str, ...]
    """Regular expressions; each must be found in at least one tensor's name."""
    lookalikes: tuple[FileKind, ...] = ()
    """Kinds whose files match these patterns as well; they are tried first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One base model of a family."""

    name: str
    """The request's `base_model`; the Hugging Face repository, unless the weights are embedded."""
    folder: Path | None = None
    """Folder of weights embedded in this package, in diffusers' pipeline layout; None: on the Hugging Face hub."""
    shared_folder: str = ""
    """Name of the folder beside `folder` with the subfolders that an embedded model shares with another one; empty:
    `folder` is complete."""
    configs: Path | None = None
    """Folder with its published configs, in diffusers' pipeline layout without weights; None: the family's."""
    license: Mapping[str, str] = field(default_factory=dict)
    """Its license, as `FamilyInfo.license` has it; empty: the family's."""
    download_gb: int = 0
    """Approximate size of the hub's repository in GB."""
    resolution: int
    """Square root of the area, in pixels, that the model is made for: of targets, controls and samples."""
    max_sample_resolution: int
    """Square root of the largest sample area, in pixels, that the model can make."""
    text_length: int
    """Tokens that the text is padded to, in families that pad."""
    sample_steps: int
    """Default number of sampler steps."""
    sample_guidance: float
    """Default guidance of samples."""
    options: frozenset[str] = frozenset()
    """Options of the transformer's diffusers config that are on in this variant and off in others of its family. They
    do not show in the weights."""
    marker: str = ""
    """Name of an empty tensor that marks the variant's transformer files, and that a conversion may lose; empty:
    none."""
    name_hint: str = ""
    """Lower-case text that names of the variant's transformer files contain; empty: the family's."""
    lookalike_names: str = ""
    """Regular expression found in file names of other models with the same tensors; empty: the family's."""

    @property
    def embedded(self) -> bool:
        """True if the weights are part of this package."""
        return self.folder is not None


@dataclass(frozen=True, slots=True)
class TextEncoderInfo:
    """One text encoder of a family."""

    title: str
    """Its name in messages and help."""
    detected_kind: FileKind
    """Kind of its single file."""


@dataclass(frozen=True, slots=True)
class VaeInfo:
    """The VAE of a family."""

    title: str
    """Its name in messages."""
    detected_kind: FileKind
    """Kind of its single file."""
    lookalike_names: str = ""
    """Regular expression found in file names of other VAEs with the same tensors; empty: none known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyPorts:
    """Marks of a family's CLIP and VAE in a ComfyUI graph, with classes given as `module.Class`."""

    clip_loader: str
    """ComfyUI's node that loads the right CLIP, with its settings, for messages."""
    clip_class: str
    """Class of `CLIP.cond_stage_model`, or a base of it."""
    tokenizer_classes: tuple[str, ...] = ()
    """Exact classes that `CLIP.tokenizer` may have; empty: any."""
    has_pooled_output: bool
    """True if the conditioning includes CLIP's pooled output."""
    vae_loader: str
    """ComfyUI's node that loads the right VAE, with its settings, for messages."""
    vae_class: str = ""
    """Class of `VAE.first_stage_model`, or a base of it; empty: any."""
    latent_channels: int
    latent_dims: int
    """Dimensions of `VAE`'s latents besides batch and channels: 2, or 3 for a video VAE."""
    picture: str = ""
    """Text before the caption for each control image that the text encoder sees, `{}` its number from 1; empty: the
    tokenizer's own template has a place for one image."""
    template: str = ""
    """Chat template of a caption, `{}` its place; empty: the tokenizer's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyInfo:
    """Everything that is known of a model family without loading it."""

    name: str
    """Identifier in cache keys, fingerprints and file metadata."""
    title: str
    """The family's name in help texts."""
    implementations: Mapping[Policy, str]
    """Subclass of `Family` for each conditioning policy: `.module.Class` in `trainer.models`, or an absolute path."""
    variants: tuple[Variant, ...]
    configs: Path
    """Folder with the published model's configs, in diffusers' pipeline layout without weights."""
    pipeline_class: str
    """Class name of the diffusers pipeline whose inference is matched."""
    guidance_arguments: str = "guidance_scale={guidance}"
    """Arguments of that pipeline that set the guidance, as Python code; `{guidance}` is its value."""
    subfolders: Mapping[Component, tuple[str, ...]]
    """Subfolders of the pipeline layout that each component is loaded from."""
    license: Mapping[str, str] = field(default_factory=dict)
    """Fields of a model card that state the license of the published models, `{base_model}` their name; empty: not
    known. Source: the models' own cards."""
    max_controls: int
    """Control images that an example may have; more than one means several are taken, in an order that matters."""
    needs_control: bool = False
    """True if the text encoder cannot do without a control image."""
    sees_control: bool
    """True if the text encoder is shown the control image, so that a caption's conditioning depends on the image."""
    uses_negative_prompt: bool
    """True if sampling uses classifier-free guidance, and with it a negative prompt."""
    transformer: FileKind
    """Kind of the transformer's single file."""
    name_hint: str
    """Lower-case text that names of this family's transformer files contain."""
    lookalike_names: str
    """Regular expression found in file names of other models with the same tensors."""
    distilled_entry: str = ""
    """Entry of model_index.json that is true for a model distilled to few steps, which has the same tensors; empty: no
    such model is known."""
    distilled_names: str = ""
    """Regular expression found in file names of such a model's transformer; empty: no such model is known."""
    text_encoders: Mapping[str, TextEncoderInfo]
    """Text encoders by subfolder."""
    vae: VaeInfo
    lora_title: str
    """The models that a LoRA of this family fits, in words."""
    lora_modules: str
    """Regular expression found in the module names of this family's LoRAs, in any of their formats."""
    comfyui: ComfyPorts

    def variant(self, base_model: str) -> Variant:
        """The variant of this name. Raises KeyError for a name that is not this family's."""
        for variant in self.variants:
            if variant.name == base_model:
                return variant
        raise KeyError(base_model)
