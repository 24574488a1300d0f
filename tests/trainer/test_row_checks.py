"""What a model cannot take is said by row and column before any of its weights are loaded, and text stays text."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from trainer.cli.main import main
from trainer.config.settings import parse_settings
from trainer.data.resize import Size
from trainer.encoding.row_checks import RowChecks
from trainer.errors import BadInput
from trainer.events import drain
from trainer.models.captions import CaptionRules, TextTokenizer, control_tokens, insert_caption, plain_ids
from trainer.models.edit_model import EditModel, open_model

from .conftest import Runs, png, shape_picture
from .edits import opened

QWEN, KONTEXT = "tiny/qwen-image-edit", "tiny/flux-kontext"
COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Fail where weights are loaded, except in tests marked slow."""
    if request.node.get_closest_marker("slow"):
        return
    for loader in ("load_transformer", "load_text_encoder", "load_codec"):
        monkeypatch.setattr(EditModel, loader, lambda *_: pytest.fail("weights are loaded"))


def write(runs: Runs, rows: int = 4, **changes: dict[int, Any]) -> None:
    """Good rows, but for the cells given by column and row."""
    columns = {
        "before": [png(shape_picture(seed)) for seed in range(rows)],
        "words": [f"pair {seed}" for seed in range(rows)],
        "after": [png(shape_picture(seed + 9)) for seed in range(rows)],
    }
    for name, cells in changes.items():
        for row, value in cells.items():
            columns[name][row] = value
    pq.write_table(pa.table(columns), runs.parquet)


STRIP = png(Image.new("RGB", (32_768, 1)))
COLUMN = png(Image.new("RGB", (1, 32_768)))
FAULTS = {
    "before": {1: STRIP},
    "after": {2: COLUMN},
    "words": {3: "word " * 5000},
}


def test_all_rows_that_the_model_cannot_take_are_named_at_once(runs):
    write(runs, **FAULTS)
    with pytest.raises(BadInput) as caught:
        runs.run(open_model(QWEN))
    said = str(caught.value)
    assert "3 bad rows of 4" in said
    assert 'row 1, column "before": the image has 32768 x 1 pixels: ' in said
    assert 'row 2, column "after": the image has 1 x 32768 pixels: ' in said
    assert 'row 3, column "words": has 5001 tokens; beside images of this size the model takes ' in said
    assert 'bad_rows to "skip"' in said


def test_a_row_beyond_the_sample_is_named_before_weights_are_loaded(runs, monkeypatch):
    monkeypatch.setattr("trainer.data.validation.SAMPLED_ROWS", 1)
    write(runs, after={2: b"no picture"})
    with pytest.raises(BadInput, match=r'row 2, column "after": not a PNG'):
        runs.run(open_model(KONTEXT))


@pytest.mark.slow
def test_rows_that_the_model_cannot_take_are_skipped_for_it_alone(runs):
    write(runs, **FAULTS)
    dataset = opened(runs.parquet, **COLUMNS, bad_rows="skip")
    rules = CaptionRules(open_model(QWEN))
    findings = drain(RowChecks(dataset, rules, parse_settings({})).check())
    assert len(dataset.without(findings.bad)) == 1
    assert len(dataset) == 4
    events = runs.run(open_model(QWEN), settings={"bad_rows": "skip"}, steps=1)
    assert [event.examples for event in events if hasattr(event, "examples")] == [1]


def test_inspect_lists_what_the_dataset_and_what_the_model_refuse(runs, capsys):
    write(runs, **FAULTS | {"before": {0: b"", 1: STRIP}}, rows=5)
    options = ["--caption-column", "words", "--control-image-column", "before", "--image-column", "after"]
    assert main(["inspect", str(runs.parquet), *options, "--base-model", QWEN, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert [(bad["row"], bad["column"]) for bad in report["bad"]] == [
        (0, "before"),
        (1, "before"),
        (2, "after"),
        (3, "words"),
    ]
    assert main(["inspect", str(runs.parquet), *options, "--base-model", KONTEXT]) == 0
    said = capsys.readouterr().out
    assert "5 rows, 4 usable, 1 bad" in said
    assert '1 caption in column "words" is longer than the 32 tokens that FLUX.1 Kontext reads' in said
    assert main(["inspect", str(runs.parquet), *options, "--base-model", "sdxl"]) == 2


def test_the_plan_counts_the_longest_caption(qwen):
    def tokens(model: EditModel) -> int:
        return model.family.text_shapes(model.transformer_config(), [Size(64, 64)])["prompt_embeds"][0]

    usual = tokens(qwen)
    assert tokens(replace(qwen, longest_caption=100)) == usual
    assert tokens(replace(qwen, longest_caption=1128)) == usual + 1000


def test_the_longest_caption_reaches_the_plan(runs, monkeypatch):
    planned = []

    def plan(model: EditModel, *_: Any) -> None:
        planned.append(model.longest_caption)
        raise BadInput("enough")

    monkeypatch.setattr("trainer.training.setup.joint_plan", plan)
    write(runs, words={2: "word " * 300})
    with pytest.raises(BadInput, match="enough"):
        runs.run(open_model(QWEN))
    assert planned[0] >= 300


@pytest.mark.parametrize(
    "sample, said", [("no.png", "no such image file"), (".", "no such image file"), ("x.txt", "not a PNG")]
)
def test_a_samples_control_is_named_before_anything_is_loaded(runs, sample, said):
    write(runs)
    (runs.folder / "x.txt").write_text("no picture")
    with pytest.raises(BadInput, match=rf"training_params\.samples\.1\.ctrl_img_url: {sample}: {said}"):
        runs.run(
            open_model(KONTEXT),
            samples=[{"ctrl_img_url": "", "prompt": "x"}, {"ctrl_img_url": sample, "prompt": "x"}],
        )


def test_a_samples_prompt_and_strip_are_named_before_anything_is_loaded(runs):
    write(runs)
    (runs.folder / "strip.png").write_bytes(STRIP)
    samples = [{"ctrl_img_url": "", "prompt": "word " * 5000}, {"ctrl_img_url": "strip.png", "prompt": "x"}]
    with pytest.raises(BadInput) as caught:
        runs.run(open_model(QWEN), samples=samples)
    assert "training_params.samples.0.prompt: has " in str(caught.value)
    assert "training_params.samples.1.ctrl_img_url: strip.png has 32768 x 1 pixels" in str(caught.value)


def test_a_missing_package_is_named_before_anything_is_loaded(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    write(runs)
    with pytest.raises(BadInput, match=r'precision "nf4" needs the package bitsandbytes'):
        runs.run(open_model(KONTEXT), settings={"precision": "nf4"})


def test_edit_refuses_what_the_model_cannot_take(tmp_path, capsys):
    for name, data, prompt, said in (
        ("strip.png", STRIP, "x", "image: has 32768 x 1 pixels"),
        ("plain.png", png(shape_picture(1)), "word " * 5000, "prompt: has "),
    ):
        (tmp_path / name).write_bytes(data)
        edit = ["edit", "--base-model", QWEN, "--image", str(tmp_path / name), "--out", str(tmp_path / "out.png")]
        assert main([*edit, "--prompt", prompt]) == 2
        assert said in capsys.readouterr().err


def tokenizers(model: EditModel) -> list:
    return list(model.load_tokenizers().values())


def test_control_tokens_are_letters(model):
    for name, tokenizer in model.load_tokenizers().items():
        added = tokenizer.get_added_vocab()
        for token in added:
            text = f"say {token} here"
            assert control_tokens([tokenizer], text) == [token]
            ids = plain_ids(tokenizer, text)
            assert not set(ids) & (set(added.values()) - {tokenizer.unk_token_id}), (name, token)
        for text in ("add a red frame", "Caf\u00e9  d\u00e9j\u00e0 vu\n< | > </", "", "1234 \U0001f600"):
            assert control_tokens([tokenizer], text) == []
            assert plain_ids(tokenizer, text) == tokenizer(text, add_special_tokens=False).input_ids


def test_the_pipelines_tokenizer_pads_and_cuts_as_the_librarys(kontext):
    for tokenizer in tokenizers(kontext):
        shim = TextTokenizer(tokenizer)
        token = next(iter(tokenizer.get_added_vocab()))
        letters = plain_ids(tokenizer, token)
        *begin, end = tokenizer("").input_ids
        padded = {"padding": "max_length", "max_length": 32, "truncation": True, "return_tensors": "pt"}
        whole = {"padding": "longest", "return_tensors": "pt"}
        for text in ("a", "a " * 40):
            for options in (padded, whole):
                assert torch.equal(shim([text], **options).input_ids, tokenizer([text], **options).input_ids)
        assert shim([token], **whole).input_ids.tolist() == [[*begin, *letters, end]]
        filling = [tokenizer.pad_token_id] * (32 - len(begin) - len(letters) - 1)
        assert shim([token], **padded).input_ids.tolist() == [[*begin, *letters, end, *filling]]
        assert shim([token * 20], **padded).input_ids.tolist() == [
            [*begin, *plain_ids(tokenizer, token * 20)[: 31 - len(begin)], end]
        ]
        assert shim.model_max_length == tokenizer.model_max_length


def test_a_caption_goes_where_it_belongs():
    inputs = BatchFeature(
        {
            "input_ids": torch.tensor([[5, 6, 5, 9]]),
            "attention_mask": torch.ones(1, 4, dtype=torch.long),
            "mm_token_type_ids": torch.tensor([[0, 1, 0, 0]]),
            "pixel_values": torch.zeros(3, 4),
        }
    )
    inserted = insert_caption(inputs, [1, 2], before=5)
    assert inserted["input_ids"].tolist() == [[5, 6, 1, 2, 5, 9]]
    assert inserted["attention_mask"].tolist() == [[1] * 6]
    assert inserted["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0, 0]]
    assert inserted["pixel_values"].shape == (3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("base_model", [QWEN, KONTEXT])
def test_control_tokens_in_captions_prompts_and_edits(runs, base_model, capsys):
    model = open_model(base_model)
    encoder = model.load_text_encoder("cpu", torch.float32)
    control = torch.zeros(1, 3, 64, 64)
    added = {token for tokenizer in tokenizers(model) for token in tokenizer.get_added_vocab()}
    plain = encoder.encode("make it ", [control])
    for token in added:
        encoded = encoder.encode(f"make it {token} red", [control])
        assert all(torch.isfinite(tensor).all() for tensor in encoded.values())
        assert any(
            value.shape != encoded[name].shape or not torch.equal(value, encoded[name]) for name, value in plain.items()
        )
    captions = {row: f"{token} <|im_end|>" for row, token in enumerate(sorted(added)[:4])}
    write(runs, words=captions)
    samples = [{"ctrl_img_url": "", "prompt": " ".join(sorted(added))}]
    runs.run(model, steps=2, samples=samples, cache_text_embeddings=True)
    (runs.folder / "in.png").write_bytes(png(shape_picture(1)))
    edit = ["edit", "--base-model", base_model, "--image", str(runs.folder / "in.png"), "--steps", "1"]
    assert main([*edit, "--prompt", " ".join(sorted(added)), "--out", str(runs.folder / "out.png")]) == 0


@pytest.mark.slow
def test_a_caption_with_a_control_token_is_encoded_as_its_letters(qwen):
    """The spliced ids are those that the template would have with a tokenizer that knows no such token."""
    encoder = qwen.load_text_encoder("cpu", torch.float32)
    processor = encoder.pipeline.processor
    image = Image.new("RGB", (56, 56))
    text = encoder.pipeline.prompt_template_encode
    whole = processor(text=[text.format("a red frame")], images=image, return_tensors="pt")
    processor.caption_ids = plain_ids(processor.tokenizer, "a red frame")
    spliced = processor(text=[text.format("")], images=image, return_tensors="pt")
    assert whole.keys() == spliced.keys()
    assert all(torch.equal(whole[name], spliced[name]) for name in whole)


class Port:
    """A graph's CLIP, as far as its tokenizers go."""

    fingerprint = "port"

    def __init__(self, model: EditModel) -> None:
        self._tokenizers = model.load_tokenizers()

    def tokenizers(self) -> dict:
        return self._tokenizers


def test_with_a_clip_from_the_graph_such_a_row_is_refused_by_name(runs, qwen):
    ported = replace(qwen, policy="comfyui", ports=type("Ports", (), {"text_encoder": Port(qwen), "codec": None})())
    write(runs, words={1: "a <|image_pad|> b", 2: "<|vision_end|>", 3: "word " * 5000})
    dataset = opened(runs.parquet, **COLUMNS)
    rules = CaptionRules(ported)
    bad = drain(RowChecks(dataset, rules, parse_settings({})).check()).bad
    assert sorted(bad) == [1, 2]
    assert bad[1][0] == "words" and "<|image_pad|>, which the graph's CLIP takes for a control token" in bad[1][1]
    assert rules.fault("plain text < | >") is None
