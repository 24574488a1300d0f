"""Options of the command line and the meaning of its exit codes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from ..data.hosts import ALLOW_OPTION
from ..errors import OK, BadInput
from ..families.registry import FAMILIES, base_model_names
from .model_options import add_model, add_path
from .settings_options import add_settings, placeholder

PROG = "python -m trainer"

VERSION = "0.2.0"
"""Version of the pack, as in pyproject.toml."""

_EXIT_CODES = (
    "Exit codes: 0 success, 1 the run failed, 2 invalid input; stopped with progress saved: 130 by Ctrl-C, "
    "143 by SIGTERM, 129 by a closed terminal."
)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises BadInput and keeps the line breaks of descriptions in --help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\nSee: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(
        prog=PROG,
        description="Teach an image-editing model a new edit from before-and-after pictures.",
        epilog=f"New here? Start with: {PROG} demo\n\n{_EXIT_CODES}",
    )
    parser.set_defaults(run=("parser", "show_help"), prog=PROG)
    parser.add_argument("--version", action="version", version=f"edit-trainer {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_pack(commands)
    _add_inspect(commands)
    _add_plan(commands)
    _add_train(commands)
    _add_export(commands)
    _add_push(commands)
    _add_edit(commands)
    return parser


def show_help(options: argparse.Namespace) -> int:
    """Print the help: the default without a command."""
    build_parser().print_help()
    return OK


def _add_command(
    commands: Any, usage: str, run: tuple[str, str], summary: str, text: str, example: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        usage.split()[0],
        usage=f"{PROG} {usage} [options]",
        help=summary,
        description=f"{summary}\n\n{text}",
        epilog=f"example:\n  {PROG} {example}\n\n{_EXIT_CODES}",
    )
    command.set_defaults(run=run, prog=command.prog)
    return command


def _add_demo(commands: Any) -> None:
    command = _add_command(
        commands,
        "demo",
        ("demo", "demo"),
        "Try it out: teach four tiny models an edit that they have never seen.",
        "Needs no GPU and no download, and takes a few minutes on two CPU cores. Writes samples.png, which\n"
        "shows images that were not trained on, before and after.",
        "demo --out demo",
    )
    add_path(command, "--out", Path("demo"), "Folder for the data, the runs and samples.png.")
    add_settings(command)


def _add_pack(commands: Any) -> None:
    command = _add_command(
        commands,
        "pack FOLDER|ZIP --out FILE.parquet",
        ("pack", "pack_pictures"),
        "Pack pairs of pictures, in folders or a zip, into a dataset.",
        "Pictures belong together by their names: target/NAME.png with control/NAME.jpg and control_2/NAME.png, or\n"
        "NAME_end.png with NAME_start.png and NAME_start2.png. A caption is in NAME.txt beside them, or in a\n"
        "table. What has no partner, or two, is named, and nothing is written.",
        'pack photos --control before --target after --caption "add a red frame" --out edits.parquet',
    )
    command.add_argument("source", metavar="FOLDER|ZIP", type=Path)
    command.add_argument("--out", metavar="FILE.parquet", type=Path, required=True, help="The dataset.")
    command.add_argument(
        "--control",
        metavar="NAME",
        action="append",
        help="Folder of the control images, or the end of their names: _before. Once more for each further control "
        "image. (default: control, control_2 and so on, or _start, _start2 and so on)",
    )
    command.add_argument(
        "--target",
        metavar="NAME",
        default="",
        help="Folder of the targets, or the end of their names. (default: target, or _end)",
    )
    command.add_argument(
        "--captions",
        metavar="FILE",
        default="",
        help="Table of captions, a CSV or JSON lines, with a file_name and a caption. (default: metadata.csv or "
        "metadata.jsonl beside the pictures, if there is one)",
    )
    command.add_argument(
        "--caption", metavar="TEXT", default="", help="Caption of every pair that has none of its own. (default: none)"
    )
    command.add_argument(
        "--images",
        choices=["embedded", "paths"],
        default="embedded",
        help="Put the pictures into the parquet, or only their paths. (default: embedded)",
    )


def _add_inspect(commands: Any) -> None:
    command = _add_command(
        commands,
        "inspect DATA.parquet",
        ("inspect", "inspect"),
        "Inspect a dataset: its columns, image sizes and unusable rows.",
        "DATA is a parquet, a folder or a quoted pattern of several, or hf://datasets/OWNER/NAME/FILE. Columns\n"
        "without an option are guessed from their names.",
        "inspect edits.parquet --caption-column prompt --control-image-column before --image-column after",
    )
    command.add_argument("data", metavar="DATA.parquet")
    for name, meaning in _COLUMN_OPTIONS.items():
        action = "append" if name == "--control-image-column" else "store"
        command.add_argument(name, metavar="NAME", help=meaning, action=action)
    command.add_argument(
        "--images-root", metavar="DIR", default="", help="Folder that relative image paths start from."
    )
    command.add_argument(
        "--base-model", metavar="NAME", help=f"Check the rows for this model too: {', '.join(base_model_names())}."
    )
    command.add_argument(
        "--allow-no-control", action="store_true", help="Let rows have no control image: they are text to image."
    )
    command.add_argument("--json", action="store_true", help="Print JSON instead of text.")
    _add_private_hosts(command)


_COLUMN_OPTIONS = {
    "--caption-column": "The column that holds the prompt.",
    "--control-image-column": "The column that holds the input image. Once more for each further one.",
    "--image-column": "The column that holds the target (output) image.",
}


def _add_plan(commands: Any) -> None:
    command = _add_command(
        commands,
        "plan REQUEST.json",
        ("plan", "plan"),
        "Show how a request would be trained on a GPU, and how much memory that takes.",
        "Loads no model, and needs neither the dataset nor the GPU.",
        "plan request.json --vram 24",
    )
    command.add_argument("request", metavar="REQUEST.json", type=Path)
    _add_gigabytes(command, "--vram", "Memory of the GPU.", "the free memory of this machine's device")
    _add_gigabytes(command, "--ram", "Free host memory.", "the free memory of this machine")
    add_model(command)
    add_settings(command)


def _add_gigabytes(command: argparse.ArgumentParser, name: str, meaning: str, default: str) -> None:
    command.add_argument(name, metavar="GB", type=float, help=f"{meaning} (default: {default})")


def _add_train(commands: Any) -> None:
    command = _add_command(
        commands,
        "train REQUEST.json",
        ("train", "train"),
        "Train a fine-tune request.",
        "Ctrl-C saves and stops; the same command resumes the run.",
        "train request.json --out runs/frames --seed 7",
    )
    command.add_argument("request", metavar="REQUEST.json", type=Path)
    add_path(command, "--out", None, "The run folder.", "runs/<name of the request file>")
    add_path(
        command,
        "--cache",
        None,
        "Cache folder for encoded images and captions; runs can share it.",
        "edit_trainer_cache beside the run folder",
    )
    command.add_argument(
        "--log-with",
        metavar="tensorboard|wandb|all",
        help="Log the run for TensorBoard, in the run folder, or to Weights & Biases, which sends it to that service; "
        "all: both. (default: none, or the environment variable EDIT_TRAINER_LOG_WITH)",
    )
    _add_private_hosts(command)
    add_model(command)
    add_settings(command)


def _add_export(commands: Any) -> None:
    command = _add_command(
        commands,
        "export RUN",
        ("export", "export"),
        "Export the LoRA, or the fine-tuned transformer, of a checkpoint.",
        "RUN is a run folder, in which a run may be training. The file is the one that a run of that many steps\n"
        "writes at its end.",
        "export runs/frames --step 400 --out frames-400.safetensors",
    )
    command.add_argument("run_folder", metavar="RUN", type=Path)
    command.add_argument("--step", metavar="N", type=int, help="Step of the checkpoint (default: the newest)")
    add_path(command, "--out", None, "The exported file.", "RUN/<name>-<step>.safetensors", metavar="FILE")
    command.add_argument("--ema", action="store_true", help="Export the averaged weights of a run with ema_decay.")
    add_model(command)


def _add_push(commands: Any) -> None:
    command = _add_command(
        commands,
        "push RUN --repo OWNER/NAME",
        ("push", "push"),
        "Push a run's LoRA to the Hugging Face hub, with a model card.",
        "Sends the LoRA, its sample images, the request and the settings; no paths, no addresses, and no captions\n"
        "other than the sample prompts. Needs a login: `hf auth login`, or HF_TOKEN.",
        "push runs/frames --repo me/frames --private",
    )
    command.add_argument("run_folder", metavar="RUN", type=Path)
    command.add_argument("--repo", metavar="OWNER/NAME", required=True, help="The repository on the hub.")
    command.add_argument("--private", action="store_true", help="Make it a private repository (default: public)")
    command.add_argument(
        "--step", metavar="N", type=int, help="Step of the LoRA (default: the last, or the newest checkpoint)"
    )


def _add_edit(commands: Any) -> None:
    command = _add_command(
        commands,
        "edit --base-model NAME --image IN.png --prompt TEXT --out OUT.png",
        ("edit", "edit"),
        "Edit one image, or several together, with or without a LoRA.",
        "Uses the sampler of the training's sample images.",
        'edit --base-model tiny/flux-kontext --image in.png --prompt "add a red frame" --lora my.safetensors'
        " --out out.png",
    )
    command.add_argument("--base-model", metavar="NAME", required=True, help=f"One of {', '.join(base_model_names())}.")
    command.add_argument(
        "--image",
        metavar="IN.png",
        type=Path,
        required=True,
        action="append",
        help="The image to edit. Once more for each further image, in their order, where the model takes several.",
    )
    command.add_argument("--prompt", metavar="TEXT", required=True, help="The edit to make.")
    command.add_argument("--out", metavar="OUT.png", type=Path, required=True, help="The edited image, a PNG.")
    add_path(command, "--lora", None, "A LoRA file.", "none", metavar="FILE")
    _add_number(command, "--lora-strength", float, 1.0, "Strength of the LoRA: 0 none, 1 as trained.")
    _add_number(command, "--seed", int, 42, "Seed of the noise.")
    _add_number(command, "--steps", int, 0, "Sampler steps; 0: the model's own.")
    _add_number(command, "--guidance", float, 0.0, "Guidance; 0: the model's own.")
    _add_number(command, "--width", int, 0, "Width in pixels; 0: the image's aspect ratio at the model's own area.")
    _add_number(command, "--height", int, 0, "Height in pixels; 0: the image's aspect ratio at the model's own area.")
    negative = ", ".join(info.title for info in FAMILIES if info.uses_negative_prompt)
    command.add_argument("--negative-prompt", metavar="TEXT", default="", help=f"What to avoid ({negative} only).")
    _add_private_hosts(command)
    add_model(command)


def _add_private_hosts(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        ALLOW_OPTION,
        action="store_true",
        help="Let URLs of images lead into private networks and to this machine. Only for data that you trust.",
    )


def _add_number(
    command: argparse.ArgumentParser, name: str, kind: type[int] | type[float], default: float, meaning: str
) -> None:
    text = f"{meaning} (default: {default})"
    command.add_argument(name, metavar=placeholder(kind), type=kind, default=default, help=text)
