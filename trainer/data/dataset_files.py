"""Files of a dataset: one parquet, those in a folder or of a pattern, or a folder that `datasets` has saved."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..errors import BadInput, DamagedFile, shorten
from ..files import read_json
from ..paths import MAX_ENTRIES, path_kind, typed_path

MAX_FILES = 2000
"""Files of a dataset; a judgement: above all but a few datasets of the hub. Opening them takes some seconds."""

LISTED = 5
"""Files and folders that a message lists; a judgement."""

SUFFIXES = (".parquet", ".arrow")
"""Ends of the names of a dataset's files."""

_PARQUET = (".parquet",)
MAGIC = re.compile(r"[*?\[]")
"""Characters that make a path a pattern."""

_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_SPLIT = re.compile(r"[-_.\d].*")
_SAVED = re.compile(r"[\w.-]+\.arrow", re.ASCII)
"""Names of the files that `save_to_disk` writes."""
_SHARD = re.compile(r"(.*)-(\d{3,9})-of-(\d{3,9})(?:-[0-9a-f]+)?")


def dataset_files(path: Path) -> tuple[Path, ...]:
    """Find the files of a dataset, in the order of their names: of a folder, of a pattern such as `data/*.parquet`, in
    which `**` stands for folders in folders, or `path` itself.

    A folder's own parquets are taken, or else those of the only folder in it that has some. Raises BadInput where there
    are none, or it is not clear which are meant.
    """
    kind = path_kind(path)
    if kind == "folder":
        files = _files_in(path)
    elif kind == "missing" and is_pattern(path):
        files = list(match_files(path))
        if not files:
            raise BadInput(f"{path}: no parquet file has a name of this pattern.")
    else:
        return (path,)
    if len(files) > MAX_FILES:
        raise BadInput(f"{path} holds more than {MAX_FILES:,} files; join some of them.")
    return tuple(sorted(files, key=lambda file: file.relative_to(_fixed_part(path)).as_posix()))


def data_folder(path: Path) -> Path:
    """Folder that the relative paths in a dataset's files start from: the one that all of its files are in."""
    folders = {file.parent for file in dataset_files(path)}
    first = min(folders, key=lambda folder: len(folder.parts))
    while not all(folder.is_relative_to(first) for folder in folders):
        first = first.parent
    return first


def find_images_root(images_root: str, parquet: Path) -> Path:
    """Folder that a parquet's relative image paths start from. Raises BadInput when there is none."""
    if not images_root:
        return data_folder(parquet)
    for folder in (typed_path(images_root), data_folder(parquet) / images_root):
        if path_kind(folder) == "folder":
            return folder
    raise BadInput(f'images_root: "{images_root}" is not a folder.')


def is_pattern(path: Path) -> bool:
    """Tell whether a path has one of the characters `*?[` below the folders of it that exist."""
    return bool(MAGIC.search("/".join(path.parts[len(_fixed_part(path).parts) :])))


def match_files(pattern: Path) -> Iterator[Path]:
    """Yield the parquet and arrow files whose paths match, at most one more than MAX_FILES."""
    start = _fixed_part(pattern)
    parts = pattern.parts[len(start.parts) :]
    deepest = MAX_ENTRIES if "**" in parts else len(parts)
    count = 0
    for file in _visible(start, SUFFIXES, deepest):
        if count <= MAX_FILES and matches(file.relative_to(start).parts, parts):
            count += 1
            yield file


def _fixed_part(pattern: Path) -> Path:
    """Folder that a pattern starts from: as much of it as exists."""
    return next((place for place in (pattern, *pattern.parents) if path_kind(place) == "folder"), pattern)


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path matches a pattern, part by part; `**` matches any number of parts."""
    reached = {0}
    for part in names:
        reached = _past_stars(reached, pattern)
        reached = {
            at if pattern[at] == "**" else at + 1
            for at in reached
            if at < len(pattern) and (pattern[at] == "**" or fnmatch.fnmatch(part, pattern[at]))
        }
    return len(pattern) in _past_stars(reached, pattern)


def _past_stars(reached: set[int], pattern: Sequence[str]) -> set[int]:
    """Places in a pattern, with those after each `**` that may stand for nothing."""
    found = set(reached)
    for at in sorted(reached):
        while at < len(pattern) and pattern[at] == "**":
            at += 1
            found.add(at)
    return found


def _visible(folder: Path, suffixes: tuple[str, ...], deepest: int) -> Iterator[Path]:
    """Yield files with one of some suffixes, at most so many folders deep, but those that are hidden or in hidden
    folders. Links to folders are not followed. Raises BadInput for more than MAX_ENTRIES entries: none is passed over.
    """
    waiting, left = deque([(folder, 1)]), MAX_ENTRIES
    while waiting:
        place, depth = waiting.popleft()
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise BadInput(f"{folder} holds more than {MAX_ENTRIES:,} files; name a parquet file in it.")
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if depth < deepest:
                        waiting.append((Path(entry.path), depth + 1))
                elif entry.name.lower().endswith(suffixes):
                    yield Path(entry.path)


def _files_in(folder: Path) -> list[Path]:
    """Files of a folder. Raises BadInput where it is not clear which they are."""
    if (saved := _saved_files(folder)) is not None:
        return saved
    found = list(_visible(folder, _PARQUET, 1)) or list(_visible(folder, _PARQUET, MAX_ENTRIES))
    names = [PurePosixPath(file.relative_to(folder).as_posix()) for file in found]
    return [folder / name for name in choose_files(names, PurePosixPath(), str(folder))]


def choose_files(names: Sequence[PurePosixPath], folder: PurePosixPath, shown: str) -> list[PurePosixPath]:
    """Choose a dataset's parquets among files below a folder: its own, or those of the only folder in it that has some.

    Raises BadInput, naming the folder as `shown`, where there are none, where several folders have some, for several
    splits, and for shards of which one is missing.
    """
    found = [name for name in names if name.suffix.lower() in _PARQUET and not _is_hidden(name.relative_to(folder))]
    found = [name for name in found if name.parent == folder] or found
    if not found:
        raise BadInput(f"{shown} is a folder without a parquet file; name a parquet file.")
    folders = sorted({name.parent for name in found})
    if len(folders) > 1:
        listed = ", ".join(shorten(str(place.relative_to(folder))) for place in folders[:LISTED])
        raise BadInput(f"{shown} has parquet files in several folders ({listed}); name one of them.")
    splits = {word for name in found if (word := _SPLIT.sub("", name.name.lower())) in _SPLITS}
    if len(splits) > 1:
        example = f"{min(splits, key=lambda word: (word != 'train', word))}*.parquet"
        raise BadInput(
            f"{shown} holds several splits ({', '.join(sorted(splits))}), and only one is to be trained on; name it by "
            f'a pattern: "{folders[0] / example}".'
        )
    _check_shards(found, shown)
    return found


def _check_shards(names: Sequence[PurePosixPath], shown: str) -> None:
    """Raise BadInput where one of `train-00000-of-00002.parquet` is missing: a copy that was cut off."""
    shards: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if found := _SHARD.fullmatch(name.stem):
            shards.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (stem, count), present in shards.items():
        if len(present) < count and (missing := next(n for n in range(count) if n not in present)) is not None:
            raise BadInput(
                f'{shown} has {len(present)} of the {count} files "{shorten(stem)}-...": number {missing} is missing. '
                "Copy it too, or name a pattern of those that are there."
            )


def _is_hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _saved_files(folder: Path) -> list[Path] | None:
    """Arrow files of a folder that `save_to_disk` of the `datasets` library wrote; None for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = _record(folder / "dataset_dict.json").get("splits")
        names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
        if len(names) == 1 and (folder / names[0]).parent == folder:
            return _saved_files(folder / names[0])
        listed = ", ".join(shorten(name) for name in names[:LISTED]) or "none"
        raise BadInput(f"{folder} holds several splits ({listed}); name the folder of one of them.")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = _record(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise BadInput(f"{folder} is a selection of rows; save it again with flatten_indices().save_to_disk().")
    listed = state.get("_data_files")
    names = [entry.get("filename") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(name, str) and _SAVED.fullmatch(name) for name in names):
        raise BadInput(f"{folder / 'state.json'} names no files of the dataset; save the dataset again.")
    return [folder / str(name) for name in names]


def _record(path: Path) -> dict:
    try:
        record = read_json(path)
    except (FileNotFoundError, DamagedFile) as error:
        raise BadInput(f"{path} {error}; save the dataset again.") from None
    return record if isinstance(record, dict) else {}
