from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import FAILED, OK, BadInput, outcome
from .parser import _PROG, build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Messages for the person go to stderr when something is wrong."""
    _never_fail_to_print()
    _quiet_libraries()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options, unknown = build_parser().parse_known_args(arguments)
        if unknown:
            raise BadInput(f"unknown option or value: {' '.join(unknown)}\nSee: {options.prog} --help")
        options.command_line = [*_PROG.split(), *arguments]
        module, function = options.run
        return getattr(import_module(f".{module}", __package__), function)(options)
    except SystemExit as leaving:
        return int(leaving.code or OK)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        message, code = outcome(error)
        print(message, file=sys.stderr, flush=True)
        return code


def _never_fail_to_print() -> None:
    """A console that lacks a character shows a question mark for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _quiet_libraries() -> None:
    """Let the libraries tell of errors only, unless the person wants otherwise; read by them when imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
