"""Trains in child processes that are killed: run as a script by test_kill.py.

One process imports everything and forks a child an attempt, because importing takes much longer than training. A child
that is two checkpoints ahead waits to be killed, so that a killer that comes late never finds a finished run.
Arguments: run folder, parquet, number of kills, and a base model, or "several" for a parquet of several controls, or
"averaged" for a run with held-out rows and averaged weights. Prints one line an attempt: how it was killed, and the
newest checkpoint that could be read afterwards.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.data.load_request import load_request
from trainer.events import Checkpoint, drain
from trainer.files import TEMPORARY_PREFIX
from trainer.models.edit_model import open_model
from trainer.training import checkpoint
from trainer.training.checkpoint import checkpoint_folders, last_step, load_checkpoint
from trainer.training.loop import train

from ..several_controls import registered, several_request

STEPS = 20
STEPS_AHEAD = 2
SEVERAL_CONTROLS = sys.argv[4:] == ["several"]
AVERAGED = {"ema_decay": 0.9, "validation_rows": 2.0, "validate_every": 1} if sys.argv[4:] == ["averaged"] else {}
BASE_MODEL = next((name for name in sys.argv[4:] if name.startswith("tiny/")), "tiny/flux-kontext")


def run(folder: Path, parquet: Path, last: int | None) -> None:
    """One training to its end, or until it waits after the checkpoint of step `last`."""
    import torch

    torch.set_num_threads(1)
    params = {"steps": STEPS, "sample_every": 10, "samples": [{"ctrl_img_url": "", "prompt": "x"}], "lora_rank": 4}
    columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
    one = {
        "resource": str(parquet),
        "base_model": BASE_MODEL,
        "script_type": "image_editing",
        "training_params": columns | params,
    }
    request, path = load_request(several_request(parquet, batch_size=2, **params) if SEVERAL_CONTROLS else one)
    settings = parse_settings({"checkpoint_every": 1, "sample_steps": 2, "keep_checkpoints": 2} | AVERAGED)
    dataset = drain(open_dataset(path, request.training_params.columns))
    for event in train(request, dataset, open_model(request.base_model), settings, run_dir=folder):
        if isinstance(event, Checkpoint) and event.step == last:
            time.sleep(600)


def write_slowly() -> None:
    """Let each half-written checkpoint of this process be seen before it is complete."""
    write = checkpoint._write_state

    def slow(path: Path, state: checkpoint.CheckpointData) -> None:
        write(path, state)
        time.sleep(0.3)

    checkpoint._write_state = slow


def fork(folder: Path, parquet: Path, last: int | None = None, slow: bool = False) -> int:
    """Start a child that trains; its process id."""
    child = os.fork()
    if child == 0:
        try:
            if slow:
                write_slowly()
            run(folder, parquet, last)
            os._exit(0)
        except BaseException as error:
            print(f"failed: {error!r}", flush=True)
            os._exit(1)
    return child


def newest(folder: Path) -> int:
    """Step of the newest checkpoint. Raises DamagedFile if any of them cannot be read."""
    return max((load_checkpoint(path).step for path in checkpoint_folders(folder / "checkpoints")), default=0)


def wait_for_write(folder: Path, deadline: float) -> bool:
    """Whether a half-written checkpoint was seen before the deadline."""
    while time.monotonic() < deadline:
        if any((folder / "checkpoints").glob(f"{TEMPORARY_PREFIX}*")):
            return True
    return False


def main() -> None:
    folder, parquet, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(0)
    before = 0
    for attempt in range(kills):
        inside = attempt % 2 == 1
        child = fork(folder, parquet, before + STEPS_AHEAD, slow=inside)
        begun = time.monotonic()
        while last_step(folder / "checkpoints") <= before and time.monotonic() < begun + 60:
            time.sleep(0.02)
        if inside:
            inside = wait_for_write(folder, time.monotonic() + 5)
        else:
            time.sleep(chance.random() * 0.3)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        after = newest(folder)
        killed = os.WIFSIGNALED(status)
        print(f"killed={killed} inside={inside} before={before} after={after}", flush=True)
        before = after
    _, status = os.waitpid(fork(folder, parquet), 0)
    print(f"finished={os.waitstatus_to_exitcode(status) == 0}", flush=True)


if __name__ == "__main__":
    with registered():
        main()
