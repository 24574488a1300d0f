"""Options that locate the files of a base model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..families.registry import FAMILIES


def _text_encoder_help(subfolder: str) -> str:
    """Each family's text encoder in this subfolder of the pipeline layout."""
    encoders = [(info.title, info.text_encoders[subfolder]) for info in FAMILIES if subfolder in info.text_encoders]
    return "; ".join(f"{title}: {encoder.title}" for title, encoder in encoders) + "."


def model_file_options() -> dict[str, str]:
    """Return the options for single files that replace components of the base model, with their help."""
    return {
        "--transformer": "The transformer: a .safetensors or .gguf file as ComfyUI uses it.",
        "--vae": "The VAE: a .safetensors file.",
        "--text-encoder": _text_encoder_help("text_encoder"),
        "--text-encoder-2": _text_encoder_help("text_encoder_2"),
    }


def model_options(options: argparse.Namespace) -> dict[str, Path]:
    """Return the given options that locate the base model's files, by option name."""
    names = ("--model", *model_file_options(), "--comfyui")
    given = {name: getattr(options, name.removeprefix("--").replace("-", "_")) for name in names}
    return {name: path for name, path in given.items() if path is not None}


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the options that locate the base model's files."""
    group = command.add_argument_group(
        "base model", "Components without a file come from --model. With files for all of them nothing is downloaded."
    )
    add_path(
        group, "--model", None, "Folder of the base model in diffusers' layout.", "downloaded from the Hugging Face hub"
    )
    for name, meaning in model_file_options().items():
        add_path(group, name, None, meaning, "from --model", metavar="FILE")
    meaning = "A ComfyUI installation, for the tokenizers of text encoders given as files."
    add_path(group, "--comfyui", None, meaning, "COMFYUI_PATH, then the Hugging Face cache")


def add_path(
    command: argparse._ActionsContainer,
    name: str,
    default: Path | None,
    meaning: str,
    default_text: str = "",
    metavar: str = "DIR",
) -> None:
    """Add an option for a path, whose help says the default: `default_text`, or `default` itself."""
    text = f"{meaning} (default: {default_text or default})"
    command.add_argument(name, metavar=metavar, type=Path, default=default, help=text)
