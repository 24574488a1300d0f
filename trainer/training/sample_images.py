"""The samples of a run: the request's prompts made ready once, then drawn and saved whenever it is time."""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..config.request import DEFAULT_CONTROL_URL, TrainingParams
from ..data.images import decode_image, fetch_control
from ..data.resize import Size
from ..encoding.encoder import Encoder
from ..encoding.example import ControlImage
from ..encoding.text import TextEmbeddings
from ..errors import BadInput
from ..events import Notice, Progress, RunControl, Sample
from ..files import atomic_write
from ..inference import decode, denoise
from ..models.types import PackedLatents, TextConditioning
from .run_folder import RunFolder

if TYPE_CHECKING:
    from ..data.dataset import EditDataset
    from ..memory.model_parts import ModelComponents


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """One sample prompt, encoded."""

    prompt: str
    control: Image.Image
    size: Size
    control_image: ControlImage
    text: TextConditioning
    negative: TextConditioning | None


class SampleImages:
    """Draws a run's samples, always from the same noise, into its samples folder."""

    def __init__(self, run: RunFolder, params: TrainingParams, encoder: Encoder) -> None:
        self.run = run
        self.params = params
        self.encoder = encoder
        self.prepared: list[SampleInputs] = []
        settings, scale = encoder.settings, encoder.family.variant
        self.seed = settings.sample_seed
        self.steps = settings.sample_steps or scale.sample_steps
        self.guidance = settings.sample_guidance or scale.sample_guidance

    def prepare(
        self, dataset: EditDataset, texts: TextEmbeddings, control: RunControl
    ) -> Generator[Progress | Notice, None, None]:
        """Fetch and encode control images and prompts. Raises BadInput for a control image that cannot be had, but for
        the published default one, in whose place the dataset's own control images are taken."""
        family = self.encoder.family
        wanted = Size(self.params.sample_width, self.params.sample_height)
        size = family.sample_size(wanted)
        if size != wanted and self.params.samples:
            yield Notice(
                message=f"This model cannot make samples of {wanted.width} x {wanted.height} pixels; "
                f"they are drawn at {size.width} x {size.height}."
            )
        warned = False
        for number, sample in enumerate(self.params.samples):
            if control.stopping:
                return
            data = None
            if sample.ctrl_img_url:
                try:
                    data = fetch_control(sample.ctrl_img_url, dataset.downloads, dataset.path.parent)
                except BadInput as error:
                    if sample.ctrl_img_url != DEFAULT_CONTROL_URL:
                        raise BadInput(f"training_params.samples.{number}.ctrl_img_url: {error}") from None
                    if not warned:
                        yield Notice(
                            message="The default sample image cannot be fetched; samples are drawn from the dataset's "
                            f"first control images instead. ({error})"
                        )
                    warned = True
            if data is None:
                data = dataset.fetch(dataset[number % len(dataset)].controls[0])
            self.prepared.append(self._prepared(sample.prompt, data, size, texts))
            yield Progress(phase="caching", done=number + 1, total=len(self.params.samples), note="samples")

    def _prepared(self, prompt: str, data: bytes, size: Size, texts: TextEmbeddings) -> SampleInputs:
        image = decode_image(data)
        control_image = self.encoder.control_image(data, size)
        family = self.encoder.family
        negative = family.negative_prompt("", self.guidance)

        def text(caption: str) -> TextConditioning:
            seen = [family.prepare_control(image, control_image.size)]
            return texts.encode_one(caption, (control_image,), seen)

        return SampleInputs(
            prompt, image, size, control_image, text(prompt), None if negative is None else text(negative)
        )

    def missing(self, step: int) -> bool:
        """Whether samples of this step are still to be drawn."""
        return not all(self.run.sample_path(step, index).is_file() for index in range(len(self.prepared)))

    def draw(self, components: ModelComponents, step: int) -> Generator[Progress | Sample, None, None]:
        """Draw all samples, save them, and tell of each; only draw them where the run's folder is another process's to
        write."""
        family, scheduler = self.encoder.family, components.model.load_scheduler()
        drawn = []
        for sample in self.prepared:
            latents = yield from denoise(
                family,
                components.transformer(),
                scheduler,
                controls=[self._control_latents(sample)],
                text=sample.text,
                negative_text=sample.negative,
                size=sample.size,
                steps=self.steps,
                guidance=self.guidance,
                seed=self.seed,
                device=components.device,
                dtype=components.dtype,
                placement=components.placement(),
            )
            drawn.append(latents)
        if not self.run.writes:
            return
        for index, (sample, latents) in enumerate(zip(self.prepared, drawn, strict=True)):
            image = decode(family, components.codec(), latents)
            path = self.run.sample_path(step, index)
            save_image(self.run.control_path(index), sample.control)
            save_image(path, image)
            self.run.append_log(
                {"event": "sample", "step": step, "index": index, "prompt": sample.prompt, "file": path.name}
            )
            yield Sample(step=step, index=index, prompt=sample.prompt, image=image, control=sample.control, path=path)

    def _control_latents(self, sample: SampleInputs) -> PackedLatents:
        return self.encoder.family.pack(self.encoder.latents(sample.control_image.latents))


def save_image(path: Path, image: Image.Image) -> None:
    """Write or replace a PNG atomically. Raises RunFailed when the disk refuses."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with atomic_write(path, durable=False) as temporary:
        temporary.write_bytes(buffer.getvalue())
