"""The folder of a run: the one that was named, or a numbered one beside it where that holds another training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ..errors import BadInput
from ..files import named_folder
from ..paths import path_kind
from .run_folder import RunFolder
from .run_lock import lock_run


def open_run_folder(
    wanted: Path,
    fingerprint: str,
    steps: int,
    held: ExitStack,
    former: Callable[[], str] | None = None,
    differences: Callable[[RunFolder], str] | None = None,
) -> tuple[RunFolder, list[str]]:
    """Return the folder of a run, whose lock `held` then holds, and notices: when it is not the one that was named, or
    was repaired.

    A folder of another training, or of one that is past `steps`, stays as it is: the run gets the first of `<name>-2`,
    `<name>-3`, ... that is free or has the same training. `former` computes the fingerprint of earlier versions,
    which a run may still have; `differences` says in which settings another training differs. Raises BadInput when
    `wanted` is a file or the folder is in use.
    """
    wanted = named_folder(wanted)
    if path_kind(wanted) in ("file", "other"):
        raise BadInput(f"The run folder {wanted} is a file; name a folder.")
    number, run, notices, former_fingerprint = 1, RunFolder(wanted), [], ""
    while True:
        with ExitStack() as locked:
            lock_notice = locked.enter_context(lock_run(run.path))
            damage = run.damage()
            if damage:
                notices.append(f"{run.path / 'run.json'} {damage}. What the checkpoints say counts instead.")
            accepted = run.accepts(fingerprint, steps)
            if not accepted and former is not None:
                former_fingerprint = former_fingerprint or former()
                accepted = run.accepts(former_fingerprint, steps)
            if accepted:
                held.enter_context(locked.pop_all())
                break
        number += 1
        run = RunFolder(wanted.with_name(f"{wanted.name}-{number}"))
    if lock_notice:
        notices.append(lock_notice)
    if run.path != wanted:
        notices.append(
            f"{wanted} holds another training (other data, base model or settings, or more steps than requested) and "
            f"stays as it is; this run goes to {run.path}.{differences(RunFolder(wanted)) if differences else ''}"
        )
    return run, notices
