"""Tokenizers of the embedded models: one token for a common word, bytes or characters for all else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5Tokenizer


TEMPLATE = (
    "system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then "
    "explain how the user's text instruction should alter or modify the image. Generate a new image that meets the "
    "user's requirements while maintaining consistency with the original input where appropriate.\nuser\nassistant\n"
)
"""Words of QwenImageEditPipeline's template: one token each, as in the real tokenizer, so that the part before the
image has the 64 tokens that the pipeline drops."""


_WORDS = """
a an the it its this that to of in on at by with without from into for and or not no as is are be all more less than
one two three four make turn move remove add invert mirror swap flip rotate change replace delete put place draw
paint give keep take set shift bring fill crop blur sharpen resize scale grow shrink copy cut hide show convert
image picture photo background foreground color colors colour colours shape shapes object frame border edge edges
outline shadow corner corners center centre middle side left right top bottom up down upper lower big bigger biggest
small smaller smallest large larger little thin thick wide tall round horizontally vertically upside around over under
behind front inside outside next red orange yellow green cyan blue purple pink white gray grey black brown cream mint
lavender peach gold silver light dark darker lighter bright brighter circle square triangle diamond star cross
rectangle ellipse oval ring heart line dot dots stripe stripes hexagon arrow pattern style sketch cartoon pixel art
watercolor oil painting pencil night day snow rain sun sky sea water fire tree house car cat dog bird person man
woman face hair hat eyes sign text word says logo ox oxen herd running holding field new old same other every each
"""


WORDS: list[str] = list(_WORDS.split())


_SPACE = "\u2581"


_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


_PADS = ("<|image_pad|>", "<|video_pad|>")


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Build a byte-level BPE in which each common word is one token, with and without a space or capital in front."""
    from transformers import Qwen2Tokenizer

    corpus = [TEMPLATE, *(form for word in WORDS for form in (word, f" {word}", word.capitalize()))]
    untrained = Qwen2Tokenizer(vocab={}, merges=[])
    vocab, merges = _train_pairs(untrained, corpus, word_end="")
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=1024)  # pyright: ignore[reportArgumentType] (pairs)
    tokenizer.add_special_tokens({"additional_special_tokens": [*_SPECIAL[1:], *_PADS]})
    return tokenizer


def klein_tokenizer(chat_template: str) -> Qwen2Tokenizer:
    """Build Qwen's tokenizer with Qwen3's marks of thinking and a chat template."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = chat_template
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """Build a lower-case byte-level BPE in which each common word is one token."""
    from transformers import CLIPTokenizer

    vocab, merges = _train_pairs(CLIPTokenizer(), WORDS, word_end="</w>")
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)  # pyright: ignore[reportArgumentType] (pairs)


def t5_tokenizer() -> T5Tokenizer:
    """Build a unigram tokenizer of common words and single characters: Latin, Greek, Cyrillic, punctuation, symbols."""
    from transformers import T5Tokenizer

    forms = [form for word in WORDS for form in (_SPACE + word, _SPACE + word.capitalize())]
    ranges = [(0x21, 0x7F), (0xA1, 0x180), (0x370, 0x400), (0x400, 0x460), (0x2010, 0x2040), (0x20A0, 0x20C0)]
    characters = [chr(code) for first, end in ranges for code in range(first, end)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -2.0)]
    pieces += [(form, -3.0) for form in dict.fromkeys(forms)] + [(character, -6.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _train_pairs(
    tokenizer: PreTrainedTokenizerFast, corpus: list[str], word_end: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn byte pairs from `corpus` until each of its words is one token; returns vocabulary and merges.

    Text is split into words as the untrained `tokenizer` does.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = tokenizer.backend_tokenizer
    suffix: dict[str, Any] = {"end_of_word_suffix": word_end} if word_end else {}
    fresh = Tokenizer(models.BPE(**suffix))
    fresh.normalizer, fresh.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=0,
        initial_alphabet=alphabet,
        show_progress=False,
        **suffix,
    )
    fresh.train_from_iterator(corpus, trainer)
    learned = json.loads(fresh.to_str())["model"]
    merges: list[tuple[str, str]] = [(first, second) for first, second in learned["merges"]]
    units = [letter + end for end in dict.fromkeys(["", word_end]) for letter in alphabet]
    names = dict.fromkeys([*units, *("".join(pair) for pair in merges)])
    return {name: index for index, name in enumerate(names)}, merges
