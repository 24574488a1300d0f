"""The processor of text and images of QwenImageEditPipeline, without what torchvision would be needed for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen2VLProcessor,
)

from ..families.records import QWEN_IMAGE_EDIT
from .captions import insert_caption


class ImageTextProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without its video processor, which needs torchvision in a matching release.

    It would take `<|image_pad|>` in a caption for another image; such a caption is given as `caption_ids` instead.
    """

    caption_ids: Sequence[int] = ()
    """Token ids of a caption that take the place of an empty one."""

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        for medium in ("image", "video"):
            token = f"<|{medium}_pad|>"
            setattr(self, f"{medium}_token", token)
            setattr(self, f"{medium}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, *arguments: Any, **options: Any) -> BatchFeature:
        """Process one text with its images to `input_ids` `[1, tokens]` int64, `pixel_values` and more."""
        inputs = super().__call__(*arguments, **options)
        if not self.caption_ids:
            return inputs
        # In the pipeline's template the caption ends the user's turn.
        return insert_caption(inputs, self.caption_ids, self.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def load_processor(folder: Path) -> Qwen2VLProcessor:
    """Load the pipeline's processor of text and images."""
    return ImageTextProcessor.from_pretrained(folder / "processor", local_files_only=True)


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen2VLProcessor:
    """The published model's processor with this tokenizer."""
    folder = QWEN_IMAGE_EDIT.configs / "processor"
    return ImageTextProcessor(AutoImageProcessor.from_pretrained(folder, local_files_only=True), tokenizer)
