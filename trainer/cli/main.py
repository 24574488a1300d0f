"""Entry point of the command line: runs a command and turns errors into exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..config.cuda_allocator import use_expandable_segments
from ..data.hosts import allow_private_hosts
from ..errors import FAILED, OK, BadInput, outcome, printable
from .parser import PROG, build_parser
from .stopping import end_at_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; error messages go to stderr."""
    _never_fail_to_print()
    _quiet_libraries()
    use_expandable_segments()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        options, unknown = build_parser().parse_known_args(arguments)
        if unknown:
            raise BadInput(f"unknown option or value: {' '.join(unknown)}\nSee: {options.prog} --help")
        if getattr(options, "allow_private_hosts", False):
            allow_private_hosts()
        options.command_line = [*PROG.split(), *arguments]
        module, function = options.run
        with end_at_signals():
            return getattr(import_module(f".{module}", __package__), function)(options)
    except SystemExit as leaving:
        return int(leaving.code or OK)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        message, code = outcome(error)
        print(printable(message), file=sys.stderr, flush=True)
        return code


def _never_fail_to_print() -> None:
    """Print a question mark for characters that the console lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _quiet_libraries() -> None:
    """Make the libraries log errors only, unless the user's environment says otherwise; they read it on import."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
