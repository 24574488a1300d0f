"""Words in the names of columns and files that say which part of an example they hold."""

from __future__ import annotations

import re
from typing import Literal

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def name_words(name: str) -> set[str]:
    """Lower-case words of a name, in the singular: `editedImages_2` gives edited, image and 2."""
    return {word.lower().removesuffix("s") for word in _WORD.findall(name)}


INPUT_WORDS = name_words(
    "control ctrl source src input in before original orig old from init initial pre cond condition conditioning "
    "reference ref start unedited raw base"
)


OUTPUT_WORDS = name_words(
    "target tgt output out after edited edit result new to post final label gt truth modified changed end generated"
)


IMAGE_WORDS = name_words("image img picture pic photo")


CAPTION_WORDS = ["instruction", "edit", "prompt", "caption", "command", "request", "text", "txt", "description"]
"""The surest first."""


OTHER_WORDS = name_words(
    "mask depth thumb thumbnail preview canny pose seg segmentation embedding hash id name md5 negative neg visual type"
)
"""Words of columns that are none of caption, control and target."""


def image_role(name: str) -> Literal["input", "output"] | None:
    """Side of the edit that a name speaks of; None where it speaks of neither or of both."""
    words = name_words(name)
    is_input, is_output = bool(words & INPUT_WORDS), bool(words & OUTPUT_WORDS)
    if is_input == is_output:
        return None
    return "input" if is_input else "output"
