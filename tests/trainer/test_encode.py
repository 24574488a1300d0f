"""What is encoded, and that it is encoded once: the cache as a run uses it."""

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainer.errors import BadInput
from trainer.events import Finished
from trainer.models.edit_model import EditModel


@pytest.fixture
def counts(monkeypatch):
    """How many images and texts were encoded."""
    counted = {"images": 0, "texts": 0}

    def counting(loader, what):
        real = getattr(EditModel, loader)

        def load(self, *arguments):
            port = real(self, *arguments)
            encode = port.encode

            def count(*rest):
                counted[what] += 1
                return encode(*rest)

            port.encode = count
            return port

        monkeypatch.setattr(EditModel, loader, load)

    counting("load_codec", "images")
    counting("load_text_encoder", "texts")

    def take() -> tuple[int, int]:
        result = counted["images"], counted["texts"]
        counted.update(images=0, texts=0)
        return result

    return take


def change(runs, column: str, row: int, value) -> None:
    table = pq.read_table(runs.parquet).to_pydict()
    table[column][row] = value
    import pyarrow as pa

    pq.write_table(pa.table(table), runs.parquet)


@pytest.mark.slow
def test_a_second_run_on_the_same_data_encodes_nothing(model, runs, counts):
    same = {"cache_text_embeddings": True, "samples": [{"ctrl_img_url": "", "prompt": "x"}], "steps": 1}
    runs.run(model, "first", **same)
    assert counts() == (12, 7)
    runs.run(model, "second", **same, learning_rate=0.01)
    assert counts() == (0, 0)


@pytest.mark.slow
def test_without_text_caching_a_second_run_encodes_no_image(model, runs, counts):
    runs.run(model, "first", steps=6, cache_text_embeddings=False)
    assert counts() == (12, 6)
    runs.run(model, "second", steps=6, cache_text_embeddings=False)
    assert counts() == (0, 6)


@pytest.mark.slow
def test_a_changed_image_or_caption_is_encoded_anew(model, runs, counts):
    same = {"cache_text_embeddings": True, "steps": 1}
    runs.run(model, "first", **same)
    counts()
    change(runs, "words", 2, "another caption")
    runs.run(model, "caption", **same)
    assert counts() == (0, 1)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(buffer, "PNG")
    change(runs, "before", 3, buffer.getvalue())
    runs.run(model, "image", **same)
    # only Qwen's text encoder sees the control image
    assert counts() == (1, 1 if model.family.info.sees_control else 0)


@pytest.mark.slow
def test_another_size_or_policy_is_encoded_anew(model, runs, counts):
    runs.write(size=(96, 64))
    runs.run(model, "first", steps=1, cache_text_embeddings=True)
    counts()
    runs.run(model, "smaller", steps=1, cache_text_embeddings=True, settings={"resolution": 32})
    images, texts = counts()
    assert (images, texts) == (6, 0)
    runs.run(
        model,
        "policy",
        steps=1,
        cache_text_embeddings=True,
        settings={"resolution": 32, "control_resolution": "target"},
    )
    images, texts = counts()
    assert images == 6
    assert texts == (6 if model.family.info.sees_control else 0)


@pytest.mark.slow
def test_a_damaged_cache_entry_is_encoded_again(kontext, runs, counts):
    runs.run(kontext, "first", steps=1, cache_text_embeddings=True)
    counts()
    file = sorted(runs.cache.glob("*/*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:50])
    runs.run(kontext, "second", steps=1, cache_text_embeddings=True)
    assert sum(counts()) == 1


def test_equal_captions_and_images_are_encoded_once(kontext, runs, counts):
    runs.write(captions=["the same"] * 6)
    runs.run(kontext, steps=1, cache_text_embeddings=True)
    assert counts() == (12, 1)


@pytest.mark.slow
def test_captions_stay_with_their_images_under_any_shuffle(model, runs, monkeypatch):
    """Every example that is trained on has the latents of its own pictures and the conditioning of its own caption."""
    import torch

    from trainer.config.columns import Columns
    from trainer.data.dataset import open_dataset
    from trainer.data.images import decode_image
    from trainer.events import drain
    from trainer.training import loop

    batches = []
    real = loop.micro_step

    def watch(components, batch, *rest):
        batches.append(batch)
        return real(components, batch, *rest)

    monkeypatch.setattr(loop, "micro_step", watch)
    runs.write(pairs=7)
    for cached in (False, True):
        runs.run(model, f"cached-{cached}", steps=8, batch_size=2, cache_text_embeddings=cached)
    dataset = drain(open_dataset(runs.parquet, Columns("words", ("before",), "after")))
    family = model.family
    codec = model.load_codec("cpu", torch.float32)
    encoder = model.load_text_encoder("cpu", torch.float32)
    for batch in batches:
        texts = []
        for number, example in enumerate(batch.examples):
            row = dataset.read_row(example.row)
            control = family.prepare_control(decode_image(dataset.fetch(row.controls[0])), example.controls[0].size)
            target = family.prepare_target(decode_image(dataset.fetch(row.target)), example.target_size)
            assert torch.equal(family.pack(family.encode(codec, target)).tokens[0], batch.clean.tokens[number])
            assert torch.equal(family.pack(family.encode(codec, control)).tokens[0], batch.controls[0].tokens[number])
            texts.append(encoder.encode(row.caption, [control]))
        expected = family.collate_text(texts)
        (group,) = batch.texts
        assert expected.keys() == group.text.keys()
        assert all(torch.equal(expected[name], group.text[name]) for name in expected)
    assert {example.row for batch in batches for example in batch.examples} == set(range(7))


@pytest.mark.slow
def test_rows_found_bad_while_caching_stop_or_are_skipped(kontext, runs, monkeypatch):
    monkeypatch.setattr("trainer.data.validation.SAMPLED_ROWS", 2)
    runs.write()
    change(runs, "after", 2, b"\xff\xd8\xff this is no image")
    with pytest.raises(BadInput, match=r"(?s)row 2.*after"):
        runs.run(kontext, steps=7)
    events = runs.run(kontext, "skipping", steps=7, settings={"bad_rows": "skip"})
    assert isinstance(events[-1], Finished)
    assert not events[-1].stopped
