"""The same training here and in plain diffusers + peft (`plain.py`), on the CPU, each in processes of its own.

Run from the repository's root: python tests/benchmarks/peers.py

A Kontext of 1536 features and 12 blocks (random weights, the tiny model's VAE and text encoders) learns from pairs of
512 x 512 pictures: 1024 + 1024 + 512 tokens. Compared are
- a step with the same precision (`--dtype`) and the same checkpointing, and ours with selective checkpointing;
- a whole run: caching, steps, a sampling before and one after, ours as its plan has it, plain with the example's flags;
- the bytes of parameters and of what one forward pass saves (`peers_bytes.py`).

First it prints the share of the plain step that is matmuls and attention, which nothing else can save.

`--steps` are run and timed; a run of `--of-steps` is put together from the medians where that is more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from tests.benchmarks.peers_bytes import our_bytes, plain_bytes

SIZE = 512
CONFIG = {
    "num_layers": 4,
    "num_single_layers": 8,
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
}
BASE = "black-forest-labs/FLUX.1-Kontext-dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--of-steps", type=int, default=100)
    parser.add_argument("--sample-steps", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="How often both sides take turns.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16", help="Of the base model, on both sides.")
    parser.add_argument("--only", choices=COMPARISONS, nargs="*", default=list(COMPARISONS))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        print(json.dumps(SIDES[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        make(options)
        for name in options.only:
            COMPARISONS[name](options)


def make(options: argparse.Namespace) -> None:
    """The model and the dataset."""
    from diffusers import FluxTransformer2DModel

    from trainer.families.records import EMBEDDED

    model = options.folder / "model"
    shutil.copytree(EMBEDDED / "flux-kontext", model)
    torch.manual_seed(0)
    config = CONFIG | {"num_attention_heads": options.width // 128}
    FluxTransformer2DModel(**config).save_pretrained(model / "transformer")
    for name, count in (("few", 4), ("pairs", options.pairs)):
        write_pairs(options.folder / f"{name}.parquet", count)


def write_pairs(path: Path, count: int) -> None:
    """Pictures of the demo's edits at SIZE, as PNG bytes in the parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainer.tiny.shapes import TAUGHT_EDITS, make_pairs, png_bytes

    rows = [
        {
            "control": png_bytes(pair.control.resize((SIZE, SIZE))),
            "caption": pair.caption,
            "target": png_bytes(pair.target.resize((SIZE, SIZE))),
        }
        for pair in make_pairs(TAUGHT_EDITS, 0, count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def measured(side: str, options: argparse.Namespace) -> dict:
    """What a process of its own found."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(options.folder)]
    for name in ("pairs", "steps", "sample_steps", "rank", "threads", "dtype"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# the sides


def plain_side(options: argparse.Namespace, checkpointing: bool, whole: bool) -> dict:
    """Plain training of few steps, or a whole run."""
    from tests.benchmarks.plain import run_plain
    from trainer.tensors import DTYPES

    parquet, samples = ("pairs", options.sample_steps) if whole else ("few", 0)
    with tempfile.TemporaryDirectory() as out:
        return run_plain(
            options.folder / "model",
            options.folder / f"{parquet}.parquet",
            Path(out),
            lora_targets(options.folder),
            options.rank,
            checkpointing,
            SIZE,
            options.steps,
            samples,
            DTYPES[options.dtype],
        )


def plain_share(options: argparse.Namespace, checkpointing: bool) -> dict:
    """Share of a plain step that is matmuls and attention."""
    from tests.benchmarks.plain import PlainTraining, matmul_share
    from trainer.tensors import DTYPES

    targets, dtype = lora_targets(options.folder), DTYPES[options.dtype]
    training = PlainTraining(options.folder / "model", targets, options.rank, checkpointing, dtype)
    training.cache(options.folder / "few.parquet", SIZE)
    return {"share": matmul_share(training)}


def our_side(options: argparse.Namespace, checkpointing: str, whole: bool) -> dict:
    """The same through `train()`."""
    from tests.benchmarks.plain import Clock
    from trainer.config.columns import Columns
    from trainer.config.request import parse_request
    from trainer.config.settings import RunSettings
    from trainer.data.dataset import open_dataset
    from trainer.events import Finished, Planned, Sample, Started, Step, drain
    from trainer.models.edit_model import open_model
    from trainer.training.loop import train

    parquet = options.folder / ("pairs.parquet" if whole else "few.parquet")
    columns = {"caption_column": "caption", "control_image_column": "control", "image_column": "target"}
    sizes = {"sample_width": SIZE, "sample_height": SIZE}
    control = options.folder / "control.png"
    control.write_bytes(first_control(parquet))
    training = {
        **columns,
        **sizes,
        "steps": options.steps,
        "sample_every": options.steps,
        "lora_rank": options.rank,
        "lora_alpha": options.rank,
        "cache_text_embeddings": True,
        "samples": [{"ctrl_img_url": str(control), "prompt": "make it red"}] if whole else [],
    }
    request = parse_request(
        {"resource": str(parquet), "base_model": BASE, "script_type": "image_editing", "training_params": training}
    )
    settings = RunSettings(
        resolution=SIZE,
        control_resolution="target",
        precision=options.dtype,
        gradient_checkpointing=checkpointing,
        sample_steps=options.sample_steps,
    )
    clock, plan = Clock(), ""
    model = open_model(BASE, options.folder / "model")
    dataset = drain(open_dataset(parquet, Columns.from_fields(columns)))
    with tempfile.TemporaryDirectory() as out:
        for event in train(request, dataset, model, settings, run_dir=Path(out) / "run", device=torch.device("cpu")):
            match event:
                case Planned(line=line):
                    plan = line
                case Started():
                    clock.lap("load and cache")
                case Step():
                    clock.lap("step")
                case Sample(step=0):
                    clock.lap("first sampling")
                case Sample():
                    clock.lap("last sampling")
                case Finished():
                    clock.lap("save")
    return {"flags": plan, "seconds": clock.laps}


def first_control(parquet: Path) -> bytes:
    """PNG bytes of the first row's control image."""
    import pyarrow.parquet as pq

    return pq.read_table(parquet, columns=["control"]).slice(0, 1).to_pylist()[0]["control"]


def lora_targets(folder: Path) -> str:
    """The modules that our LoRA is on, for peft."""
    from trainer.models.edit_model import open_model

    model = open_model(BASE, folder / "model")
    return model.family.lora_targets("attention+mlp", model.empty_transformer())


SIDES = {
    "plain-on": lambda options: plain_side(options, True, False),
    "plain-off": lambda options: plain_side(options, False, False),
    "ours-on": lambda options: our_side(options, "on", False),
    "ours-selective": lambda options: our_side(options, "selective", False),
    "ours-off": lambda options: our_side(options, "off", False),
    "plain-run": lambda options: plain_side(options, True, True),
    "ours-run": lambda options: our_side(options, "auto", True),
    "share-on": lambda options: plain_share(options, True),
    "share-off": lambda options: plain_share(options, False),
    "plain-bytes": lambda options: plain_bytes(
        options.folder / "model", options.folder / "few.parquet", lora_targets(options.folder), options.rank, SIZE
    ),
    "ours-bytes": lambda options: our_bytes(BASE, options.folder / "model", options.rank, SIZE),
    "ours-bytes-modulation": lambda options: our_bytes(
        BASE, options.folder / "model", options.rank, SIZE, offload="modulation"
    ),
}


# the comparisons


def show_share(options: argparse.Namespace) -> None:
    """Matmuls and attention in a plain step, checkpointed and not."""
    for mode in ("on", "off"):
        share = measured(f"share-{mode}", options)["share"]
        print(f"matmul and attention of a plain step, checkpointing {mode}: {share:.3f}", flush=True)


def compare_steps(options: argparse.Namespace) -> None:
    """Steps at the same checkpointing, the sides taking turns."""
    for modes in (["plain-on", "ours-on", "ours-selective"], ["plain-off", "ours-off"]):
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        for _ in range(options.rounds):
            for mode in modes:
                # The first step warms up.
                found = measured(mode, options)["seconds"]["step"]
                seconds[mode] += found[1:] or found
        plain = statistics.median(seconds[modes[0]])
        for mode in modes:
            ours = statistics.median(seconds[mode])
            print(f"step, {mode}: {ours:.2f} s, ratio {ours / plain:.3f}   ({seconds[mode]})", flush=True)


def compare_runs(options: argparse.Namespace) -> None:
    """Whole runs, each as its side would do it."""
    totals = {}
    for side in ("plain", "ours"):
        found = measured(f"{side}-run", options)
        laps = found["seconds"]
        step = statistics.median(laps["step"][1:] or laps["step"])
        other = sum(sum(times) for name, times in laps.items() if name != "step")
        totals[side] = other + step * options.of_steps
        phases = ", ".join(f"{name} {sum(times):.1f}" for name, times in laps.items() if name != "step")
        print(
            f"run, {side} ({found['flags']}): {phases}, step {step:.2f}; {options.pairs} pairs, {options.of_steps} "
            f"steps, 2 samplings of {options.sample_steps} steps: {totals[side]:.0f} s",
            flush=True,
        )
    print(f"run: ratio {totals['ours'] / totals['plain']:.3f}", flush=True)


def compare_bytes(options: argparse.Namespace) -> None:
    """Parameters and saved tensors of a forward pass in bf16 with checkpointing."""
    plain = measured("plain-bytes", options)
    plain_total = sum(plain["parameters"].values()) + plain["saved"]
    print(f"bytes, plain bf16: {plain_total / 1e9:.3f} GB ({plain['saved'] / 1e9:.3f} saved)", flush=True)
    for side in ("ours-bytes", "ours-bytes-modulation"):
        found = measured(side, options)
        total = found["parameters"] + found["saved"]
        print(
            f"bytes, {found['flags']}: {total / 1e9:.3f} GB ({found['saved'] / 1e9:.3f} saved), "
            f"ratio {total / plain_total:.3f}",
            flush=True,
        )


COMPARISONS = {"share": show_share, "step": compare_steps, "run": compare_runs, "bytes": compare_bytes}

if __name__ == "__main__":
    main()
