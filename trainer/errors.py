"""Errors with messages for users, and the exit codes of the command line."""

from __future__ import annotations

import sys
import traceback
import unicodedata


class BadInput(ValueError):
    """Unusable request, dataset, setting or file. The message says what is wrong, where, and what to do."""

    @property
    def reason(self) -> str:
        """The message, in the class of text that it was raised with: one that says more, such as MissingFile, stays."""
        return self.args[0]


class RunFailed(RuntimeError):
    """Failure of a valid run (disk full, loss not finite). Saved checkpoints and samples are kept."""


class NotFinite(RunFailed):
    """Failure of the training itself: its loss or a gradient is no finite number. Its last steps are not saved."""


class DamagedFile(ValueError):
    """File of a run folder, a checkpoint or a cache that cannot be used. The message says why, in words that follow the
    file's name."""


class BadImage(BadInput):
    """Unusable image. The message says why; the caller adds row and column."""


def printable(text: str) -> str:
    """Escape what a terminal obeys or hides, in text that may come from a stranger's file or server: control characters
    other than newline and tab, and those that reverse or hide text."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in _ALLOWED or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, limit: int = 200) -> str:
    """Make text printable and at most `limit` characters long, for a message."""
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: Exception) -> str:
    """First line of another library's message, at most 300 characters; the error's class where it has no message."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


_ALLOWED = "\n\t\u200c\u200d"
"""Newline, tab, and the joiners that some scripts and emojis are written with."""


OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def outcome(error: BaseException) -> tuple[str, int]:
    """Message and exit code of an error that ends a command."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    if isinstance(error, BadInput):
        return f"error: {error}", BAD_INPUT
    if isinstance(error, RunFailed):
        return f"error: {error}", FAILED
    return _explain(error), FAILED


def _explain(error: BaseException) -> str:
    """Message of an error that is neither BadInput nor RunFailed."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.cuda.OutOfMemoryError)):
        return (
            "error: out of memory. Try, most effective first: --offload blocks, --precision int8, a smaller "
            "--resolution, "
            "a smaller batch_size."
        )
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"error: {error.strerror or error}{where}"
    trace = "".join(traceback.format_exception(error))
    return (
        f"{trace}\nThis is a bug in the trainer, not a problem with your input. Please report it with the lines above."
    )
