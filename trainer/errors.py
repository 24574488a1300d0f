"""The two kinds of error a person is meant to read: their input is wrong, or the run could not go on."""

from __future__ import annotations

import sys
import traceback


class BadInput(ValueError):
    """The request, the dataset, a setting or a file is not usable. The message says what, where and what to do."""


class RunFailed(RuntimeError):
    """A run that was well asked for could not go on (disk full, loss not finite). What it made so far is kept."""


class BadImage(BadInput):
    """One image cannot be used. The message says what and why; who knows the row and the column adds them."""


OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def outcome(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error that ends a command."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    if isinstance(error, BadInput):
        return f"error: {error}", BAD_INPUT
    if isinstance(error, RunFailed):
        return f"error: {error}", FAILED
    return _explain(error), FAILED


def _explain(error: BaseException) -> str:
    """What went wrong, for everything that is neither BadInput nor RunFailed."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.cuda.OutOfMemoryError)):
        return (
            "error: out of memory. What helps, best first: --offload blocks, --precision int8, a smaller --resolution, "
            "a smaller batch_size."
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"error: {error.strerror or error}{where}"
    trace = "".join(traceback.format_exception(error))
    return f"{trace}\nThis is a fault of the trainer, not of your input. Please report it with the lines above."
