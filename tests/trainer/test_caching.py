"""Images are encoded as one by one, though threads prepare them ahead and batches go through the codec together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer.config.columns import Columns
from trainer.config.settings import RunSettings
from trainer.data.dataset import EditDataset, open_dataset
from trainer.data.images import decode_image
from trainer.data.resize import Size
from trainer.encoding import encoder as encode
from trainer.encoding import latents
from trainer.encoding.cache import TensorCache
from trainer.encoding.encoder import Encoder
from trainer.encoding.latents import LatentEncoder, PendingImages, PreparedImage
from trainer.errors import BadInput
from trainer.events import RunControl, drain
from trainer.memory.model_parts import ModelComponents
from trainer.memory.plan import Plan
from trainer.models.edit_model import EditModel, open_model
from trainer.models.flux_kontext import FluxKontext
from trainer.threads import BackgroundWork, prefetch

from .conftest import png, shape_picture
from .image_server import image_server

SIZES = [(64, 64), (96, 64), (64, 96)]
COLUMNS = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
BROKEN = b"\xff\xd8\xff this is no image"


@pytest.fixture(scope="module")
def tiny() -> EditModel:
    return open_model("tiny/flux-kontext")


def new_encoder(model: EditModel, folder: Path) -> Encoder:
    components = ModelComponents(
        model, torch.device("cpu"), Plan(precision="fp32", dtype=torch.float32, offload="none")
    )
    return Encoder(components, TensorCache(folder), RunSettings(control_resolution="target"))


def write_pairs(folder: Path, pairs: int, changes: dict[tuple[str, int], bytes | str] | None = None) -> EditDataset:
    columns = {
        "words": [f"pair {number}" for number in range(pairs)],
        "before": [png(shape_picture(number, SIZES[number % 3])) for number in range(pairs)],
        "after": [png(shape_picture(1000 + number, SIZES[number % 3])) for number in range(pairs)],
    }
    for (column, row), value in (changes or {}).items():
        columns[column][row] = value
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return drain(open_dataset(folder / "pairs.parquet", Columns.from_fields(COLUMNS), bad_rows="skip"))


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before


def watched_shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """What is encoded from now on."""
    shapes, real = [], FluxKontext.encode

    def watch(family: FluxKontext, codec, image: torch.Tensor) -> torch.Tensor:
        shapes.append(image.shape)
        return real(family, codec, image)

    monkeypatch.setattr(FluxKontext, "encode", watch)
    return shapes


def assert_encoded_alone(encoder: Encoder, dataset: EditDataset, examples: list[encode.Example], **close) -> None:
    """Every example's latents are those of its own images, encoded one at a time."""
    family, codec = encoder.family, encoder.components.codec()
    for example in examples:
        row = dataset.read_row(example.row)
        control = family.prepare_control(decode_image(dataset.fetch(row.controls[0])), example.controls[0].size)
        target = family.prepare_target(decode_image(dataset.fetch(row.target)), example.target_size)
        for key, image in ((example.controls[0].latents, control), (example.target, target)):
            torch.testing.assert_close(encoder.latents(key), family.encode(codec, image), **close)


@pytest.mark.slow
def test_examples_are_in_order_and_their_latents_their_own(tiny, tmp_path):
    dataset, encoder = write_pairs(tmp_path, 25), new_encoder(tiny, tmp_path / "cache")
    told = []
    with no_thread_left():
        steps = encoder.examples(dataset, RunControl())
        while True:
            try:
                told.append(next(steps).done)
            except StopIteration as end:
                examples = end.value
                break
    assert told == list(range(1, 26))
    assert [example.row for example in examples] == list(range(25))
    assert [example.caption for example in examples] == [f"pair {number}" for number in range(25)]
    assert_encoded_alone(encoder, dataset, examples, rtol=0, atol=0)


@pytest.mark.parametrize("side", [64, 72])
def test_many_at_once_are_encoded_as_one_alone(tiny, side):
    codec = tiny.load_codec("cpu", torch.float32)
    pixels = torch.rand(6, 3, side, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone = torch.cat([codec.encode(one) for one in pixels.split(1)])
    with ThreadPoolExecutor(3) as executor:
        side_by_side = torch.cat(list(executor.map(codec.for_batches().encode, pixels.split(1))))
    torch.testing.assert_close(side_by_side, alone, rtol=1e-4, atol=1e-5)


def test_the_count_of_threads_is_as_before(tiny, tmp_path):
    before = torch.get_num_threads()
    drain(new_encoder(tiny, tmp_path / "cache").examples(write_pairs(tmp_path, 4), RunControl()))
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(torch.get_num_threads).result() == torch.get_num_threads() == before


@pytest.mark.slow
def test_bad_rows_in_the_middle_are_left_out_and_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.validation.SAMPLED_ROWS", 2)
    dataset = write_pairs(tmp_path, 25, {("after", 7): BROKEN, ("before", 12): BROKEN, ("after", 13): BROKEN})
    encoder = new_encoder(tiny, tmp_path / "cache")
    examples = drain(encoder.examples(dataset, RunControl()))
    assert [example.row for example in examples] == [row for row in range(25) if row not in (7, 12, 13)]
    assert [(fault.row, fault.column) for fault in dataset.report.bad] == [(7, "after"), (12, "before"), (13, "after")]
    assert all("damaged" in fault.why for fault in dataset.report.bad)
    assert_encoded_alone(encoder, dataset, examples, rtol=0, atol=0)
    dataset.bad_rows = "stop"
    with pytest.raises(BadInput, match="row 7"):
        dataset.exclude({7: ("after", "damaged")})


def test_equal_images_are_prepared_once_and_bad_ones_are_bad_in_every_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.validation.SAMPLED_ROWS", 1)
    same = png(shape_picture(5))
    cut = png(shape_picture(6))[:-30]
    changes = {("before", row): same for row in range(0, 12)} | {("after", row): cut for row in (3, 4, 5, 9)}
    dataset, encoder = write_pairs(tmp_path, 12, changes), new_encoder(tiny, tmp_path / "cache")
    shapes = watched_shapes(monkeypatch)
    examples = drain(encoder.examples(dataset, RunControl()))
    assert [fault.row for fault in dataset.report.bad] == [3, 4, 5, 9]
    controls = {example.controls[0].latents for example in examples}
    targets = {example.target for example in examples}
    assert len(targets) == 8
    assert len(controls) < 4
    assert len(shapes) == len(controls) + len(targets)
    monkeypatch.undo()
    assert_encoded_alone(encoder, dataset, examples, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "close"])
def test_stopped_in_the_middle_the_cache_can_be_used(tiny, tmp_path, way):
    dataset, encoder = write_pairs(tmp_path, 30), new_encoder(tiny, tmp_path / "cache")
    control = RunControl()
    with no_thread_left():
        steps = encoder.examples(dataset, control)
        for _ in range(5):
            next(steps)
        if way == "stop":
            control.stop()
            assert not list(steps)
        else:
            steps.close()
    files = list((tmp_path / "cache").glob("*/*"))
    assert 10 <= len(files) < 60
    assert all(file.suffix == ".safetensors" and not file.name.startswith(".") for file in files)
    again = new_encoder(tiny, tmp_path / "cache")
    assert_encoded_alone(again, dataset, drain(again.examples(dataset, RunControl())), rtol=0, atol=0)


@pytest.mark.slow
def test_only_so_many_images_are_prepared_ahead(tiny, tmp_path, monkeypatch):
    dataset, encoder = write_pairs(tmp_path, 40), new_encoder(tiny, tmp_path / "cache")
    monkeypatch.setattr(encode, "AHEAD_PIXELS", 3 * 2 * 64 * 64)
    assert encoder.rows_ahead(1) == 3
    alive, most, lock = 0, 0, threading.Lock()

    class Counted(PreparedImage):
        def __init__(self, *fields) -> None:
            nonlocal alive, most
            super().__init__(*fields)
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    monkeypatch.setattr(latents, "PreparedImage", Counted)
    drain(encoder.examples(dataset, RunControl()))
    # of the rows ahead, of the row in hand and of the one that it follows
    assert 4 < most <= 2 * (3 + 2)
    assert alive == 0


class FullBatches(LatentEncoder):
    """Batches as on an accelerator."""

    _is_parallel = False

    def batch_size(self, size: Size) -> int:
        return self._max_images.get(size, 4)


@pytest.mark.slow
def test_batches_of_one_size_give_what_single_images_give(tiny, tmp_path, monkeypatch):
    dataset, encoder = write_pairs(tmp_path, 25), new_encoder(tiny, tmp_path / "cache")
    monkeypatch.setattr(encode, "LatentEncoder", FullBatches)
    shapes = watched_shapes(monkeypatch)
    examples = drain(encoder.examples(dataset, RunControl()))
    assert {shape[0] for shape in shapes} == {4}
    assert len(shapes) == sum(-(-count // 4) for count in (18, 16, 16))
    monkeypatch.undo()
    assert_encoded_alone(encoder, dataset, examples, rtol=1e-3, atol=1e-3)


def test_a_full_memory_makes_batches_smaller(tiny, tmp_path, monkeypatch):
    dataset, encoder = write_pairs(tmp_path, 9), new_encoder(tiny, tmp_path / "cache")
    monkeypatch.setattr(encode, "LatentEncoder", FullBatches)
    real = FluxKontext.encode
    tried = []

    def refuse(self, codec, image):
        tried.append(len(image))
        if len(image) > 1:
            raise torch.OutOfMemoryError("full")
        return real(self, codec, image)

    monkeypatch.setattr(FluxKontext, "encode", refuse)
    examples = drain(encoder.examples(dataset, RunControl()))
    assert Counter(tried) == {4: 3, 2: 3, 1: 18}
    assert_encoded_alone(encoder, dataset, examples, rtol=0, atol=0)


def test_pictures_that_wait_for_others_are_bounded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "WAITING_PIXELS", 3 * 64 * 64)
    encoder = new_encoder(tiny, tmp_path / "cache")
    keys = [f"{number:04d}" for number in range(6)]
    with FullBatches(encoder.components, encoder.cache) as batches:
        for number, key in enumerate(keys):
            batches.add(PreparedImage(key, torch.rand(1, 3, 64, 64 + 16 * (number % 3))))
            assert sum(len(images) for images in batches._waiting.values()) <= 3
        batches.finish()
    assert all(key in encoder.cache for key in keys)


@pytest.mark.slow
def test_addresses_are_fetched_by_several_threads(tiny, tmp_path):
    with image_server() as server:
        asking, most, lock = 0, 0, threading.Lock()

        def page(data: bytes):
            def answer(request) -> None:
                nonlocal asking, most
                with lock:
                    asking += 1
                    most = max(most, asking)
                time.sleep(0.2)
                with lock:
                    asking -= 1
                request.send_response(200)
                request.send_header("Content-Length", str(len(data)))
                request.end_headers()
                request.wfile.write(data)

            return answer

        dataset = write_pairs(tmp_path, 8)
        table = pq.read_table(tmp_path / "pairs.parquet").to_pydict()
        for column in ("before", "after"):
            table[column] = [server.page(f"/{column}{row}.png", page(data)) for row, data in enumerate(table[column])]
        pq.write_table(pa.table(table), tmp_path / "addresses.parquet")
        sampled = "trainer.data.validation.SAMPLED_ROWS"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampled, 0)
            remote = drain(open_dataset(tmp_path / "addresses.parquet", Columns.from_fields(COLUMNS)))
        ours, theirs = (new_encoder(tiny, tmp_path / name) for name in ("ours", "theirs"))
        assert drain(ours.examples(remote, RunControl())) == drain(theirs.examples(dataset, RunControl()))
        assert most >= 3


def test_work_behind_is_done_in_order_and_its_errors_surface():
    done = []
    with no_thread_left(), BackgroundWork(max_pending=2) as behind:
        for number in range(5):
            behind.add(done.append, number)
        behind.finish()
        assert done == list(range(5))
        behind.add(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            behind.finish()


def test_prefetched_items_are_in_order_whichever_thread_is_first():
    with no_thread_left():
        assert list(prefetch(range(20), lambda item: item * item, ahead=5, threads=4)) == [n * n for n in range(20)]


def test_who_waits_for_an_equal_image_is_told_why_it_is_bad(tmp_path):
    pending = PendingImages(TensorCache(tmp_path))
    begun, go_on = threading.Event(), threading.Event()
    outcomes = []

    def fail() -> torch.Tensor:
        begun.set()
        go_on.wait(10)
        raise BadInput("is damaged")

    def attempt() -> None:
        try:
            pending.prepare("key", fail)
        except BadInput as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    go_on.set()
    for thread in threads:
        thread.join()
    assert outcomes == ["is damaged"] * 3
