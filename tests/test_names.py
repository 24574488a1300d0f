"""Public names of the pack's own code: the field's terms, none of the private words they replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from .source_tree import Modules, attributes, definitions, syntax_trees

MODULES = syntax_trees()

WORDS = {
    "agreed": "shared",
    "asked": "local",
    "begun": "started",
    "course": "train state",
    "doubts": "warnings",
    "fast_codes": "a low-precision matmul benchmark",
    "feed": "live run",
    "in_parts": "sharded",
    "integer_products": "quantize_activations",
    "main_first": "main_process_first",
    "patched": "a port",
    "recompute": "activation checkpointing",
    "said_in_name": "name_hint",
    "shared_like": "shard_like",
    "siblings": "lookalikes",
    "supply": "batch loader",
    "taken": "claimed",
    "told": "reported",
    "trainee": "trainable",
    "whole": "full",
}
"""Words that stand in no public name, alone or joined to others, and the field's terms for them."""
CLASSES = {
    "Card": "DeviceInfo",
    "Group": "MultiProcess",
    "HostTensors": "PinnedTensors",
    "LatentBatches": "LatentEncoder",
    "MicroBatch": "BatchPlan",
    "Modulated": "ModulationOutputs",
    "Needs": "MemoryEstimate",
    "Parts": "ModelComponents",
    "Preparation": "PendingImages",
    "PreparedSample": "SampleInputs",
    "Ranks": "SingleProcess",
    "Ring": "BlockStreamer",
    "Samples": "SampleImages",
    "Scale": "Variant",
    "Stack": "FusedModule",
    "TrainingState": "CheckpointData",
    "Warning": "Notice, as the builtin has that name",
}
FUNCTIONS = {
    "ahead": "precompute",
    "codes": "quantized values",
    "during": "using",
    "input_gradient": "linear_input_grad",
    "meet": "all_gather_object",
    "product": "linear",
}
"""Functions, methods and fields by their full names: the same words are good in others, as `exit_codes`."""
FILES = {
    "archive": "saved_runs",
    "card": "device",
    "codes": "formats",
    "driver": "runner",
    "exits": "exit codes in errors",
    "page": "same_origin",
    "products": "matmul",
    "sampling": "inference",
    "sheet": "contact_sheet",
    "terminal": "console",
}


def words(name: str) -> str:
    """A name in lower case with underscores between its words and around it."""
    return f"_{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()}_"


def public_names(modules: Modules) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Place, name and table of every public module, class, function, method and attribute."""
    for path, module in modules.items():
        yield str(path), path.stem, FILES
        for name, statement, _, _ in attributes(module):
            yield f"{path}:{statement.lineno}", name, FUNCTIONS
    for definition in definitions(modules):
        name = definition.name.split(".")[-1]
        if definition.is_public():
            yield str(definition), name, CLASSES if isinstance(definition.node, ast.ClassDef) else FUNCTIONS
        if definition.is_public() and isinstance(definition.node, ast.ClassDef):
            for field, statement, _, _ in attributes(definition.node):
                yield f"{definition.path}:{statement.lineno} {definition.name}.{field}", field, FUNCTIONS


def private_words(modules: Modules) -> list[str]:
    """Public names with a private word in them."""
    found = []
    for place, name, table in public_names(modules):
        if name in table:
            found.append(f"{place}: the field says {table[name]}")
        found += [f"{place}: for {word}, the field says {WORDS[word]}" for word in WORDS if f"_{word}_" in words(name)]
    return found


def test_public_names_are_the_fields_terms() -> None:
    assert private_words(MODULES) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trainer/driver.py", ""),
        ("trainer/patched.py", ""),
        ("trainer/run.py", "class Course: ..."),
        ("trainer/run.py", "class NewTrainee: ..."),
        ("trainer/run.py", "class Run:\n    def during(self): ..."),
        ("trainer/run.py", "@dataclass\nclass Run:\n    asked: int = 0"),
        ("trainer/run.py", "def whole_tensor(): ..."),
        ("trainer/run.py", "MAIN_FIRST = 1"),
    ],
)
def test_a_planted_word_is_found(path: str, text: str) -> None:
    (fault,) = private_words({PurePosixPath(path): ast.parse(text)})
    assert fault.startswith(path)


def test_the_same_words_in_the_fields_terms_pass() -> None:
    text = "EXIT_CODES = 1\nclass RunGroup: ...\ndef draw_contact_sheet(): ...\ndef _meet(): ..."
    assert private_words({PurePosixPath("trainer/contact_sheet.py"): ast.parse(text)}) == []
