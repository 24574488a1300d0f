"""Sample images of a run: the request's prompts encoded once, then drawn and saved every so many steps."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..config.samples import DEFAULT_CONTROL_URL, DEFAULT_SAMPLE_SIDE, DEFAULT_SAMPLES, SamplePrompt
from ..data.image_refs import fetch_control
from ..data.images import decode_image
from ..data.resize import Size
from ..encoding.encoder import Encoder
from ..encoding.text import TextEmbeddings
from ..errors import BadInput, RunFailed
from ..events import Notice, Progress, RunControl, Sample
from ..files import atomic_write
from ..inference import DenoiseInputs, DenoiseOptions, decode, denoise
from ..models.types import TextConditioning

if TYPE_CHECKING:
    from .setup import RunContext


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """One sample prompt with its control images, encoded."""

    prompt: str
    controls: Sequence[Image.Image]
    size: Size
    control_latents: Sequence[torch.Tensor]
    """Their normalized latents `[1, C, h, w]` in the compute dtype, on the CPU."""
    text: TextConditioning
    """Conditioning of the prompt, `[1, ...]` in the text encoder's dtype."""
    negative_text: TextConditioning | None
    """Conditioning of the negative prompt, `[1, ...]` in the text encoder's dtype; None where guidance uses none."""


class SampleImages:
    """Encodes the sample prompts of a run and draws them, each time from the same noise, into its samples folder."""

    def __init__(self, context: RunContext, encoder: Encoder) -> None:
        self.dataset, self.params = context.dataset, context.params
        self.run, self.components = context.run, context.components
        self.encoder, self.family = encoder, encoder.family
        self.prepared: list[SampleInputs] = []
        self.lora = context.sample_lora
        settings = context.settings
        steps, guidance = settings.sample_steps, settings.sample_guidance
        if self.lora is not None:
            steps, guidance = settings.sample_lora_steps, settings.sample_lora_guidance
        self.base = context.sample_base
        own = DenoiseOptions.for_variant(self.family.variant, steps, guidance, settings.sample_seed)
        self.options = self.base.options if self.base else own

    def prepare(self, texts: TextEmbeddings, control: RunControl) -> Generator[Progress | Notice, None, None]:
        """Fetch and encode control images and prompts.

        The published default samples are replaced by the dataset's first control images and captions when their image
        cannot be fetched. Raises BadInput for any other that cannot.
        """
        requested = Size(self.params.sample_width, self.params.sample_height)
        size = self.family.sample_size(requested)
        chosen = requested != Size(DEFAULT_SAMPLE_SIDE, DEFAULT_SAMPLE_SIDE)
        if size != requested and chosen and self.params.samples:
            yield Notice(
                message=f"This model cannot make samples of {requested.width} x {requested.height} pixels; "
                f"they are drawn at {size.width} x {size.height}."
            )
        default_failed = False
        for number, sample in enumerate(self.params.samples):
            if control.stopping:
                return
            urls, files = sample.control_urls, []
            try:
                files = [fetch_control(url, self.dataset.downloads, self.dataset.folder) for url in urls]
            except BadInput as error:
                if urls != [DEFAULT_CONTROL_URL]:
                    raise BadInput(f"training_params.samples.{number}.ctrl_img_url: {error}") from None
                if not default_failed:
                    yield Notice(
                        message="The default sample image cannot be fetched; samples are drawn from the dataset's "
                        f"first control images and captions instead. ({error})"
                    )
                default_failed = True
            prompt = sample.prompt
            if not files:
                row = self.dataset[number % len(self.dataset)]
                files = [self.dataset.fetch(reference) for reference in row.controls]
                # The default prompts are about the default image.
                prompt = row.caption if _is_default(sample) else prompt
            self.prepared.append(self._encode(prompt, files, size, texts))
            yield Progress(phase="caching", done=number + 1, total=len(self.params.samples), note="samples")

    def _encode(self, prompt: str, files: Sequence[bytes], size: Size, texts: TextEmbeddings) -> SampleInputs:
        """Encode a prompt with its control images, given as the contents of their files."""
        images = [decode_image(data) for data in files]
        encoded = [self.encoder.control_image(data, size) for data in files]
        controls = [control for control, _ in encoded]
        pixels = [self.encoder.seen_by_text(data, control) for data, control in zip(files, controls, strict=True)]
        negative = self.family.negative_prompt("", self.options.guidance)
        text = texts.encode_one(prompt, controls, pixels)
        negative_text = None if negative is None else texts.encode_one(negative, controls, pixels)
        return SampleInputs(prompt, images, size, [latents for _, latents in encoded], text, negative_text)

    def missing(self, step: int) -> bool:
        """Tell whether samples of this step are still to be drawn."""
        return not all(self.run.sample_path(step, index).is_file() for index in range(len(self.prepared)))

    def draw(
        self, step: int, lora: Mapping[str, torch.Tensor] | None = None
    ) -> Generator[Progress | Notice | Sample, None, None]:
        """Draw all samples and save them; a process that does not write only takes part in the drawing. `lora`: the
        trained one, exported, [rank, in] and [out, rank] of any float dtype, for a base of the samples' own."""
        drawn = []
        own = self.base.drawing(self.components, lora) if self.base and lora else nullcontext(self.components)
        with self._with_lora(), own as components:
            for sample in self.prepared:
                controls = [self.family.pack(latents) for latents in sample.control_latents]
                inputs = DenoiseInputs(controls, sample.text, sample.negative_text, sample.size)
                drawn.append((yield from denoise(components, inputs, self.options)))
        if not self.run.writes:
            return
        for index, (sample, latents) in enumerate(zip(self.prepared, drawn, strict=True)):
            try:
                image = decode(self.components, latents)
            except RunFailed as error:
                yield Notice(message=f"Sample {index} of step {step} is drawn black. {error}")
                image = Image.new("RGB", sample.size)
            yield self._save(step, index, sample, image)
        yield from self.components.notices()

    def _with_lora(self) -> AbstractContextManager[None]:
        """Context in which the LoRA for samples is applied, if there is one."""
        if self.lora is None or not self.prepared:
            return nullcontext()
        components = self.components
        return self.lora.applied(components.transformer(), components.device, components.dtype)

    def _save(self, step: int, index: int, sample: SampleInputs, image: Image.Image) -> Sample:
        path = self.run.sample_path(step, index)
        for old in self.run.control_files(index)[len(sample.controls) :]:
            old.unlink(missing_ok=True)
        for number, control in enumerate(sample.controls):
            save_image(self.run.control_path(index, number), control)
        save_image(path, image)
        self.run.append_log(
            {"event": "sample", "step": step, "index": index, "prompt": sample.prompt, "file": path.name}
        )
        return Sample(step=step, index=index, prompt=sample.prompt, image=image, controls=sample.controls, path=path)


def _is_default(sample: SamplePrompt) -> bool:
    published = [(default.control_urls, default.prompt) for default in DEFAULT_SAMPLES]
    return (sample.control_urls, sample.prompt) in published


def save_image(path: Path, image: Image.Image) -> None:
    """Write or replace a PNG atomically. Raises RunFailed when the disk refuses."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(buffer.getvalue())
