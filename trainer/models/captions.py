"""Captions: what a model takes, and that they are text. A token that steers the model, such as `<|image_pad|>` or
`</s>`, is only letters in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from .edit_model import EditModel

SHORT_CAPTION = 128
"""Bytes of a caption whose tokens are not counted: no tokenizer makes more tokens than bytes, and memory estimates
assume as many."""


class CaptionRules:
    """Rules that captions must keep to for one model. Loads tokenizers only."""

    def __init__(self, model: EditModel) -> None:
        self.family = model.family
        self._tokenizers = model.load_tokenizers()
        self._is_port = model.ports is not None
        added = {token for tokenizer in self._tokenizers.values() for token in _added(tokenizer)}
        self._any_control_token = re.compile("|".join(map(re.escape, sorted(added))) or "$^", re.IGNORECASE)

    def fault(self, caption: str, room: int | None = None) -> str | None:
        """Why a caption cannot be used beside images that leave `room` for its tokens; None if it can."""
        if self._is_port and self._any_control_token.search(caption):
            found = control_tokens(self._tokenizers.values(), caption)
            if found:
                return (
                    f"holds {found[0]}, which the graph's CLIP takes for a control token, not for text; reword it, or "
                    "set conditioning to diffusers"
                )
        if room is not None and (tokens := self.tokens(caption)) > room:
            return f"has {tokens} tokens; beside images of this size the model takes {max(0, room)}. Shorten it"
        return None

    def tokens(self, caption: str) -> int:
        """Number of a caption's tokens; 0 for a short one, or where the family does not count."""
        name = self.family.counted_tokenizer
        if not name or name not in self._tokenizers or len(caption.encode("utf-8", "replace")) <= SHORT_CAPTION:
            return 0
        return len(_backend(self._tokenizers[name]).encode(caption, add_special_tokens=True).ids)


def control_tokens(tokenizers: Iterable[PreTrainedTokenizerBase], caption: str) -> list[str]:
    """Return the parts of a caption that one of the tokenizers takes for control tokens, each once."""
    found = {}
    for tokenizer in tokenizers:
        texts = {caption, _normalized(tokenizer, caption)}
        found |= {token: None for token in _added(tokenizer) if any(token in text for text in texts)}
    return list(found)


def plain_ids(tokenizer: PreTrainedTokenizerBase, caption: str) -> list[int]:
    """Token ids of a caption in which no control token is looked for.

    The tokenizer's own switch, `split_special_tokens`, leaves in those that are added but not special, such as
    `<tool_call>`; transformers' `sanitize_control_tokens` is newer than the oldest version that is supported.
    """
    added, text, backend = _added(tokenizer), _normalized(tokenizer, caption), _backend(tokenizer)
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
    ids = []
    for word, _ in words:
        for token in backend.model.tokenize(word):
            # T5's vocabulary has its control tokens as words too.
            parts = token.value if token.value in added else None
            ids += [token.id] if parts is None else [t.id for part in parts for t in backend.model.tokenize(part)]
    return ids


class TextTokenizer:
    """A pipeline's tokenizer for which control tokens in a caption are letters; captions without any go through it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> BatchEncoding:
        """Tokenize one caption to `input_ids`, int64 `[1, tokens]`, as the pipelines call a tokenizer: with
        return_tensors "pt", and either truncated and padded to `max_length` or whole."""
        (caption,) = text
        if not control_tokens([self.tokenizer], caption):
            return self.tokenizer(text, **options)
        *begin, end = self.tokenizer("").input_ids
        ids = [*begin, *plain_ids(self.tokenizer, caption), end]
        if options.get("truncation"):
            length = options["max_length"]
            ids = ids if len(ids) <= length else [*ids[: length - 1], end]
            ids += [self.tokenizer.pad_token_id] * (length - len(ids))
        return BatchEncoding({"input_ids": torch.tensor([ids])})


class ChatTokenizer(TextTokenizer):
    """A pipeline's tokenizer of chat messages for which control tokens in a caption are letters."""

    _caption: str | None = None
    """Caption with control tokens that takes its place in the text that is tokenized next."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        """Return the text of one message, the caption; an empty one in place of a caption with control tokens."""
        (message,) = messages
        is_plain = not control_tokens([self.tokenizer], message["content"])
        self._caption = None if is_plain else message["content"]
        shown = message if is_plain else {**message, "content": ""}
        return str(self.tokenizer.apply_chat_template([shown], **options))

    def __call__(self, text: str, **options: Any) -> BatchEncoding | BatchFeature:
        """Tokenize the text of the last message to `input_ids` and `attention_mask`, int64 `[1, max_length]`, padded at
        the end."""
        caption, self._caption = self._caption, None
        if caption is None:
            return self.tokenizer(text, **options)
        inputs = BatchFeature(dict(self.tokenizer(text, return_tensors="pt")))
        # In the template the caption ends the user's turn, the only one.
        end_of_turn = self.tokenizer.get_vocab()["<|im_end|>"]
        insert_caption(inputs, plain_ids(self.tokenizer, caption), end_of_turn)
        length, padding = options["max_length"], self.tokenizer.get_vocab()[str(self.tokenizer.pad_token)]
        for name, end in (("input_ids", padding), ("attention_mask", 0)):
            own = inputs[name][:, :length]
            inputs[name] = torch.nn.functional.pad(own, (0, length - own.shape[1]), value=end)
        return inputs


def insert_caption(inputs: BatchFeature, caption: Sequence[int], before: int) -> BatchFeature:
    """Insert the ids of a caption into a processor's inputs of one text, in front of the last token `before`.

    Every tensor `[1, tokens]` int64 of the inputs gets as many more values: ones in the attention mask, else zeros.
    """
    ids = inputs["input_ids"]
    place = int((ids[0] == before).nonzero()[-1])
    for name, tensor in list(inputs.items()):
        if tensor.shape != ids.shape or name == "pixel_values":
            continue
        value = {"attention_mask": 1}.get(name, 0)
        new = tensor.new_tensor(list(caption)) if name == "input_ids" else tensor.new_full((len(caption),), value)
        inputs[name] = tensor.new_empty((1, tensor.shape[1] + len(caption)))
        inputs[name][0, :place], inputs[name][0, place + len(caption) :] = tensor[0, :place], tensor[0, place:]
        inputs[name][0, place : place + len(caption)] = new
    return inputs


def _added(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that are looked for in texts before anything else: special and added ones."""
    return {token.content for token in _backend(tokenizer).get_added_tokens_decoder().values()}


def _normalized(tokenizer: PreTrainedTokenizerBase, caption: str) -> str:
    normalizer = _backend(tokenizer).normalizer
    return normalizer.normalize_str(caption) if normalizer else caption


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's part from the tokenizers library, which transformers 5 has in all of its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    assert isinstance(backend, Tokenizer)
    return backend
