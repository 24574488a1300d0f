"""The plans of the models for cards of all sizes, as the tables in docs/memory.md have them.

Run from the repository's root: python tests/benchmarks/plans.py

With --fake-cuda every row is trained and sampled at full depth on a fake card, and printed beside its plan. That takes
minutes a row; --rows TEXT takes the rows whose name has the text, such as "qwen 1024 on 24 GB with 64".
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__" and "--fake-cuda" in sys.argv:
    from tests.fake_cuda import shim

    shim.load()  # before torch

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

from trainer.config.request import MultiImageParams, RequestParams, TrainingParams
from trainer.config.settings import RunSettings
from trainer.device import DeviceInfo, assumed_gpu
from trainer.errors import BadInput
from trainer.memory.plan import Plan, gigabytes
from trainer.memory.planner import make_plan
from trainer.models.edit_model import EditModel, open_model

MODELS = {"Qwen-Image-Edit": "Qwen/Qwen-Image-Edit", "FLUX.1 Kontext": "black-forest-labs/FLUX.1-Kontext-dev"}
KLEIN = {
    "FLUX.2 [klein] 4B": "black-forest-labs/FLUX.2-klein-base-4B",
    "FLUX.2 [klein] 9B": "black-forest-labs/FLUX.2-klein-base-9B",
}
SEVERAL, TWO_CONTROLS = "Qwen-Image-Edit-2511", ["b", "d"]
"""A model that takes several control images, and the columns of two of them."""
RESOLUTIONS = (1024, 512)
CARDS = (80, 48, 32, 24, 16, 12, 8)
HOST = 64
"""GB of free host memory."""
SMALLER_HOSTS = (32, 16)
PARAMS = TrainingParams(caption_column="c", control_image_column="b", image_column="a", cache_text_embeddings=True)
PARAMS_OF_TWO = MultiImageParams(caption_column="c", control_image_columns=TWO_CONTROLS, image_column="a")
DESKTOPS = {
    "RTX 4090": (24, (8, 9)),
    "RTX 4080": (16, (8, 9)),
    "RTX 4070": (12, (8, 9)),
    "RTX 3060 12 GB": (12, (8, 6)),
    "RTX 4060": (8, (8, 9)),
}
"""Nominal GB and compute capability."""
DESKTOP, DESKTOP_HOST = 1, 32
"""GB of the card that a desktop takes, and free GB of its host."""
HEADER = (
    "| card | base | modulation | streamed | selective checkpointing | full checkpointing | "
    "weights | slots | LoRA | activations | workspace | reserve | total | host |"
)
PARTS = (
    "frozen weights",
    "slots for streamed blocks",
    "trained weights, gradients, optimizer",
    "activations",
    "workspace of the largest block",
    "driver and allocator",
)


def card(gb: float, host: float, capability: tuple[int, int] | None = None) -> DeviceInfo:
    """A card of that many free GB as the command line finds it on Linux."""
    info = replace(assumed_gpu(gb, host), expandable_segments=True, spills=False, compiler=True)
    if capability is None:
        return info
    slow = {"fp8"} if capability < (8, 9) else set()
    fast = frozenset(info.fast_precisions - slow)
    return replace(info, capability=capability, fast_precisions=fast, preferred_precisions=fast)


def plan_for(model: EditModel, resolution: int, device_info: DeviceInfo, params: RequestParams = PARAMS) -> Plan | str:
    """The plan, or how its refusal says that the training would fit."""
    settings = RunSettings(resolution=resolution, control_resolution="target", cache_text_embeddings=True)
    try:
        return make_plan(model, params, settings, device_info)
    except BadInput as error:
        message = str(error)
        cures = ("It fits with ", "A smaller text encoder", "No setting")
        start = max(message.find(cure) for cure in cures)
        return message[start:].removeprefix("It ").rstrip(".")


def table(base_model: str, resolution: int, params: RequestParams = PARAMS) -> list[str]:
    """Lines of Markdown."""
    model = open_model(base_model)
    lines = [HEADER, "|---" * HEADER.count(" | ") + "|---|"]
    return lines + [row(gb, plan_for(model, resolution, card(gb, HOST), params)) for gb in CARDS]


def title(name: str, resolution: int) -> str:
    """Heading of a table."""
    return f"{name}, {resolution} x {resolution} from {resolution} x {resolution}"


def row(gb: int, plan: Plan | str) -> str:
    """One card's plan."""
    if isinstance(plan, str):
        return f"| {gb} GB | refused: {plan} {'|' * (HEADER.count(' | ') - 1)} |"
    blocks = len(plan.activation_checkpointing)
    cells = [
        f"{gb} GB",
        plan.precision,
        "host" if plan.modulation_on_host else "card",
        f"{len(plan.streamed)} of {blocks}",
        str(plan.activation_checkpointing.count("selective")),
        f"{plan.activation_checkpointing.count('full')}{', inputs on host' if plan.inputs_on_host else ''}",
        *(gigabytes(plan.expected.get(part, 0)) for part in PARTS),
        gigabytes(plan.bytes),
        gigabytes(host_peak(plan)),
    ]
    return f"| {' | '.join(cells)} |"


def host_peak(plan: Plan) -> int:
    """Bytes of host memory at the peak of all phases."""
    return max(phase.host for phase in plan.phases)


def brief(plan: Plan | str) -> str:
    """A plan in a cell."""
    if isinstance(plan, str):
        return f"refused: {plan}"
    blocks, selective, full = (
        len(plan.activation_checkpointing),
        plan.activation_checkpointing.count("selective"),
        plan.activation_checkpointing.count("full"),
    )
    streamed = f", {len(plan.streamed)} streamed" if plan.streamed else ""
    return (
        f"{plan.precision}, {blocks - selective - full} / {selective} / {full}{streamed}; "
        f"card {gigabytes(max(phase.device for phase in plan.phases))}, host {gigabytes(host_peak(plan))}"
    )


def smaller_hosts(base_model: str) -> list[str]:
    """Lines of Markdown: every card and size on hosts with less memory."""
    model = open_model(base_model)
    lines = [f"| card, size | {' | '.join(f'{host} GB of host memory' for host in SMALLER_HOSTS)} |"]
    lines.append("|---" * (1 + len(SMALLER_HOSTS)) + "|")
    for resolution in RESOLUTIONS:
        for gb in CARDS:
            cells = [brief(plan_for(model, resolution, card(gb, host))) for host in SMALLER_HOSTS]
            lines.append(f"| {gb} GB, {resolution} | {' | '.join(cells)} |")
    return lines


def desktops() -> list[str]:
    """Lines of Markdown: cards of which a desktop takes its part."""
    models = [open_model(base_model) for base_model in MODELS.values()]
    heads = [f"{name}, {resolution}" for name in MODELS for resolution in RESOLUTIONS]
    lines = [f"| card | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, (gb, capability) in DESKTOPS.items():
        info = card(gb - DESKTOP, DESKTOP_HOST, capability)
        cells = [brief(plan_for(model, resolution, info)) for model in models for resolution in RESOLUTIONS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def sections() -> dict[str, Callable[[], list[str]]]:
    """The tables of docs/memory.md by heading."""
    tables: dict[str, Callable[[], list[str]]] = {
        title(name, resolution): partial(table, base_model, resolution)
        for name, base_model in MODELS.items()
        for resolution in RESOLUTIONS
    }
    two = {SEVERAL: f"Qwen/{SEVERAL}", **KLEIN}
    tables |= {title(name, 1024): partial(table, base_model, 1024) for name, base_model in KLEIN.items()}
    for name, base_model in two.items():
        tables[f"{name}, 1024 x 1024 from two of 1024 x 1024"] = partial(table, base_model, 1024, PARAMS_OF_TWO)
    for name, base_model in MODELS.items():
        tables[f"{name}, hosts with less memory"] = partial(smaller_hosts, base_model)
    return tables | {"Cards that also draw a desktop": desktops}


def on_fake_cuda(text: str) -> None:
    """Train and sample the rows whose name has this text."""
    from tests.fake_cuda.rows import Row

    hosts = (HOST, *SMALLER_HOSTS)
    groups = [
        [Row(family, resolution, gb, host) for host in hosts]
        for family, resolution, gb in product(("qwen", "kontext"), RESOLUTIONS, CARDS)
    ]
    groups += [[Row("2511", 1024, gb, HOST, PARAMS_OF_TWO)] for gb in CARDS]
    kleins = product(("klein 4B", "klein 9B"), CARDS, (PARAMS, PARAMS_OF_TWO))
    groups += [[Row(family, 1024, gb, HOST, params)] for family, gb, params in kleins]
    for group in groups:
        shown: list[tuple[Plan, str]] = []
        for row in group:
            if text in row.name():
                print("\n".join([row.name(), *row.lines(shown)]), flush=True)


if __name__ == "__main__" and "--fake-cuda" in sys.argv:
    on_fake_cuda(sys.argv[sys.argv.index("--rows") + 1] if "--rows" in sys.argv else "")
elif __name__ == "__main__":
    for heading, lines in sections().items():
        print(f"\n### {heading}\n")
        print("\n".join(lines()))
