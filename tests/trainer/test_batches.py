"""The order of micro-batches: complete, bucketed, addressed by seed and epoch, resumable."""

from itertools import islice

from trainer.data.resize import Size
from trainer.encoding.example import ControlImage, Example
from trainer.training.batch_sampler import Position, epoch_batches, plan_batches

WIDE, TALL = Size(96, 64), Size(64, 96)


def example(row: int, target: Size = WIDE, control: Size = WIDE) -> Example:
    return Example(row, f"caption {row}", (ControlImage("digest", control, "key", control),), f"target {row}", target)


def mixed(count: int) -> list[Example]:
    return [example(row, WIDE if row % 3 else TALL, WIDE if row % 2 else TALL) for row in range(count)]


def test_an_epoch_has_every_example_once_in_batches_of_one_shape():
    examples = mixed(101)
    batches = epoch_batches(examples, seed=1, epoch=0, batch_size=4)
    assert sorted(e.row for batch in batches for e in batch) == list(range(101))
    assert all(len({e.shape for e in batch}) == 1 for batch in batches)
    assert sum(len(batch) < 4 for batch in batches) <= 4  # one remainder a shape


def test_order_depends_on_seed_and_epoch():
    examples = mixed(50)

    def order(seed, epoch):
        return [e.row for batch in epoch_batches(examples, seed, epoch, 2) for e in batch]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_one_shape_gives_the_same_order_at_any_batch_size():
    examples = [example(row) for row in range(20)]
    single = [e.row for batch in epoch_batches(examples, 5, 0, 1) for e in batch]
    double = [e.row for batch in epoch_batches(examples, 5, 0, 2) for e in batch]
    assert single == double


def test_going_on_from_any_position_gives_the_same_micro_batches():
    examples = mixed(11)
    full_tensor = list(islice(plan_batches(examples, 3, 2, Position(0, 0)), 25))
    for done in range(1, 25):
        rest = list(islice(plan_batches(examples, 3, 2, full_tensor[done - 1].next_position), 25 - done))
        assert rest == full_tensor[done:]
