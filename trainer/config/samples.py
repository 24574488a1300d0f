"""Sample prompts of a request: an edit to make, and its control images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .recorded import STRICT

DEFAULT_CONTROL_URL = (
    "https://hub.oxen.ai/api/repos/ox/Oxen-Character-Simple-Vector-Graphic"
    "/file/main/images/reference/bloxy_white_bg.png"
)


DEFAULT_SAMPLE_SIDE = 1024
"""Width and height of samples, in pixels, that nobody chose: a model that makes smaller ones follows its own size."""


class SamplePrompt(BaseModel):
    """One sample image of a run: a control image and the edit to make."""

    model_config = STRICT

    ctrl_img_url: str = Field(
        default="", description="URL or local path of the control image. Empty: the dataset's first control image."
    )
    prompt: str = Field(description="The edit to make.")

    @property
    def control_urls(self) -> list[str]:
        """URLs and paths of the control images; empty for those of the dataset's first row."""
        return [self.ctrl_img_url] if self.ctrl_img_url else []


def _text_or_texts(value: object) -> object:
    """Report one fault for a value that is neither text nor a list of texts."""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise PydanticCustomError("texts_type", "Input should be text or a list of texts")


class MultiImageSample(SamplePrompt):
    """One sample image of a run: its control images and the edit to make."""

    ctrl_img_url: Annotated[str | list[str], BeforeValidator(_text_or_texts)] = Field(
        default="",
        description="URLs or local paths of the control images: one as text, or a list. Empty: the control images of "
        "the dataset's first row.",
    )

    @property
    def control_urls(self) -> list[str]:
        """URLs and paths of the control images; empty for those of the dataset's first row."""
        urls = [self.ctrl_img_url] if isinstance(self.ctrl_img_url, str) else self.ctrl_img_url
        return [url for url in urls if url]


def sample_prompt(prompt: str, urls: Sequence[str]) -> SamplePrompt:
    """A sample with control images at these URLs and paths, of the kind that has so many."""
    if len(urls) > 1:
        return MultiImageSample(prompt=prompt, ctrl_img_url=list(urls))
    return SamplePrompt(prompt=prompt, ctrl_img_url="".join(urls))


DEFAULT_SAMPLES = (
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="an ox holding a sign that says 'Oxen.ai'"),
    SamplePrompt(ctrl_img_url=DEFAULT_CONTROL_URL, prompt="a herd of oxen running in a field"),
)
