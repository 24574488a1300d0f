"""Columns are guessed from names, types and first rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.columns import MAX_CHARACTERS, column_kinds, first_look, guess_columns

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PATHS = ["a/1.jpg", "a/2.png"]
DATASETS = {
    "instruct-pix2pix": (
        "edit_prompt",
        "original_image",
        "edited_image",
        {
            "original_prompt": "a",
            "original_image": IMAGE,
            "edit_prompt": "b",
            "edited_prompt": "c",
            "edited_image": IMAGE,
        },
    ),
    "magicbrush": (
        "instruction",
        "source_img",
        "target_img",
        {
            "img_id": "7",
            "turn_index": 1,
            "source_img": IMAGE,
            "mask_img": IMAGE,
            "instruction": "b",
            "target_img": IMAGE,
        },
    ),
    "kontext": ("caption", "control", "target", {"control": PATHS, "caption": "b", "target": PATHS}),
    "anyedit": (
        "edit_instruction",
        "image_file",
        "edited_file",
        {
            "edit_instruction": "make it red",
            "edit_type": "color_alter",
            "image_file": IMAGE,
            "edited_file": IMAGE,
            "visual_input": IMAGE,
        },
    ),
    "plain": ("prompt", "before", "after", {"before": PATHS, "prompt": "b", "after": PATHS}),
    "toolkit": ("text", "control_image", "image", {"image": PATHS, "text": "b", "control_image": PATHS}),
    "camel": ("editPrompt", "srcImage", "tgtImage", {"srcImage": PATHS, "tgtImage": PATHS, "editPrompt": "b"}),
    "in-out": ("description", "in", "out", {"in": pa.binary(), "out": pa.binary(), "description": "b"}),
    "urls": (
        "command",
        "input_url",
        "output_url",
        {"input_url": ["https://a.b/c"], "output_url": ["https://a.b/d"], "command": "b", "source_caption": "x"},
    ),
    "one-named": ("task", "photo", "result", {"photo": PATHS, "result": PATHS, "task": "b", "score": 1}),
    "captions": (
        "instruction",
        "input_image",
        "output_image",
        {
            "input_image": IMAGE,
            "input_caption": "x",
            "output_image": IMAGE,
            "output_caption": "y",
            "instruction": "z",
            "control_depth": IMAGE,
        },
    ),
    "twelve": (
        "Edit Instruction",
        "Image (before)",
        "Image (after)",
        {
            "id": 1,
            "sha256": "ff",
            "width": 3,
            "height": 4,
            "is_test": True,
            "score": 0.5,
            "tags": pa.list_(pa.string()),
            "license": "CC0",
            "thumbnail": IMAGE,
            "Image (before)": IMAGE,
            "Image (after)": IMAGE,
            "Edit Instruction": "make it red",
        },
    ),
}


def write(path: Path, columns: dict[str, object]) -> Path:
    """Two rows; a type stands for a column of nulls of it, a list for its texts, anything else for one value."""
    arrays = {
        name: pa.nulls(2, value)
        if isinstance(value, pa.DataType)
        else pa.array((value * 2)[:2] if isinstance(value, list) else [value] * 2)
        for name, value in columns.items()
    }
    pq.write_table(pa.table(arrays), path)
    return path


@pytest.mark.parametrize("name", DATASETS)
def test_the_guess_is_right(tmp_path: Path, name: str) -> None:
    caption, control, target, columns = DATASETS[name]
    guess = guess_columns(write(tmp_path / "data.parquet", columns))
    assert guess == {"caption_column": caption, "control_image_column": control, "image_column": target}


@pytest.mark.parametrize(
    ("names", "controls"),
    [
        (["control", "control_2", "target"], ["control", "control_2"]),
        (["target", "control_3", "control_2", "control_1"], ["control_1", "control_2", "control_3"]),
        (["image", "image 2", "output"], ["image", "image 2"]),
        (["target", "control_image", "control_image_2"], ["control_image", "control_image_2"]),
        (["srcImage1", "srcImage2", "tgtImage"], ["srcImage1", "srcImage2"]),
        (["control", "control_2", "control_3", "control_4", "target"], ["control", "control_2", "control_3"]),
        (["control", "control_large", "target"], ["control"]),
        (["control", "control_1", "control_2", "target"], ["control"]),
        (["control", "control_3", "target"], ["control"]),
        (["control", "control_12", "target"], ["control"]),
    ],
)
def test_further_controls_are_guessed_where_their_names_are_numbered(
    tmp_path: Path, names: list[str], controls: list[str]
) -> None:
    path = write(tmp_path / "data.parquet", {"caption": "b"} | dict.fromkeys(names, IMAGE))
    (target,) = (name for name in names if name in ("target", "output", "tgtImage"))
    several = {"control_image_columns": controls} if len(controls) > 1 else {"control_image_column": controls[0]}
    assert guess_columns(path) == {"caption_column": "caption", "image_column": target} | several
    single = {"control_image_column": controls[0]}
    assert guess_columns(path, most_controls=1) == {"caption_column": "caption", "image_column": target} | single


def test_image_columns_are_told_from_text_columns(tmp_path: Path) -> None:
    columns = {"a": PATHS, "b": "make it red", "c": IMAGE, "d": 1, "e": pa.string(), "f": pa.binary()}
    kinds = column_kinds(write(tmp_path / "data.parquet", columns))
    assert kinds == {"a": "image", "b": "text", "c": "image", "d": "other", "e": "either", "f": "image"}


def test_a_kind_of_edit_is_no_caption(tmp_path: Path) -> None:
    """OmniEdit's captions are lists, which cannot be used; its task is none."""
    columns = {
        "omni_edit_id": "task_obj_add_1",
        "task": "addition",
        "src_img": IMAGE,
        "edited_img": IMAGE,
        "edited_prompt_list": pa.list_(pa.string()),
        "sc_reasoning": "The edit is right.",
        "o_score": 8,
    }
    guess = guess_columns(write(tmp_path / "data.parquet", columns))
    assert guess == {"control_image_column": "src_img", "image_column": "edited_img", **guess}
    assert guess.get("caption_column") is None


def test_what_nothing_tells_is_left_open(tmp_path: Path) -> None:
    assert guess_columns(write(tmp_path / "data.parquet", {"x": PATHS, "y": PATHS, "z": 1})) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [".png?" * 60_000 + "\n", "a" * 50_000_000, "\u00e9." * 100_000], ids=["query", "long", "dots"]
)
def test_a_hostile_caption_is_looked_at_in_no_time(tmp_path: Path, text: str) -> None:
    """Bounded by what is looked at of a text, not by how it is made: the process would hang here."""
    path = write(tmp_path / "data.parquet", {"a": text, "b": PATHS})
    assert column_kinds(path)["b"] == "image"
    assert max(map(len, first_look(path)[1]["a"])) <= MAX_CHARACTERS


@pytest.mark.parametrize("text", ["a/b.PNG", "x.jpeg?size=3", "HTTPS://a.b/c", "data:image/png;base64,AA", "a?b.webp"])
def test_texts_that_name_images(tmp_path: Path, text: str) -> None:
    assert column_kinds(write(tmp_path / "data.parquet", {"a": text})) == {"a": "image"}


@pytest.mark.parametrize("text", ["make it png", "png", "a.pngx", "what.png is\nshown"])
def test_texts_that_do_not(tmp_path: Path, text: str) -> None:
    assert column_kinds(write(tmp_path / "data.parquet", {"a": text})) == {"a": "text"}
