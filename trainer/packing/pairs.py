"""Pairs of pictures by their names. Nothing is ever paired by its order.

Pictures are in folders, `target/NAME.png` with `control/NAME.jpg` and `control_2/NAME.png`, or their names end in what
they are, `NAME_end.png` with `NAME_start.png` and `NAME_start2.png`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..errors import shorten

TARGET, CONTROL = "target", "control"
"""Folders that are looked for unless others are named; further control images are in `control_2`, `control_3`."""

SUFFIXES = (("_start", "_end"), ("_control", "_target"))
"""Ends of the names of control and target that are looked for where there is no such folder."""

PICTURES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"}
)
"""Extensions of pictures that can be read."""

OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".jxl", ".jp2", ".psd", ".xcf", ".tga", ".exr", ".hdr", ".dds", ".ico", ".svg", ".raw", ".dng"}
    | {".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".mp4", ".mov", ".avi", ".webm", ".mkv"}
)
"""Extensions of pictures and films that cannot be read: they are named, not passed over."""

TEXT = ".txt"


@dataclass(frozen=True, slots=True)
class PicturePair:
    """Pictures that make one example, by their names in the source."""

    key: str
    """Name that they have in common, in Unicode's composed form."""
    controls: tuple[str, ...]
    target: str


@dataclass
class Roles:
    """Files of a source by what they are in a pair."""

    names: tuple[str, ...]
    """Roles as a message names them: each of the control images, then the target."""
    pictures: list[dict[str, list[str]]]
    """Pictures of each role, by key."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Texts beside the pictures, by key."""
    faults: list[str] = field(default_factory=list)

    def add(self, role: int | None, key: str, name: str) -> None:
        """Add a file. A text may have no role: it is then that of the whole pair."""
        key, extension = unicodedata.normalize("NFC", key), PurePosixPath(name).suffix.lower()
        if extension == TEXT:
            self.texts.setdefault(key, []).append(name)
        elif extension in OTHER_PICTURES:
            self.faults.append(f"{shorten(name)}: {extension} is not read; save it as PNG or JPEG")
        elif extension in PICTURES and role is None:
            ends = ", ".join(self.names)
            self.faults.append(f"{shorten(name)}: its name ends in none of {ends}, so that it belongs to no pair")
        elif extension in PICTURES:
            assert role is not None
            self.pictures[role].setdefault(key, []).append(name)

    def pairs(self) -> list[PicturePair]:
        """Pairs in the order of their keys; what has no partner, or more than one, is added to the faults."""
        folded = [{key.casefold(): names[0] for key, names in found.items()} for found in self.pictures]
        pairs = []
        for key in sorted({key for found in self.pictures for key in found}):
            found = [pictures.get(key, []) for pictures in self.pictures]
            some = next(names[0] for names in found if names)
            self.faults += [_twice(names) for names in found if len(names) > 1]
            for role, names in enumerate(found):
                if not names:
                    twin = folded[role].get(key.casefold())
                    hint = f'; "{shorten(twin)}" differs in upper and lower case: give both one name' if twin else ""
                    self.faults.append(f"{shorten(some)}: has no partner in {self.names[role]}{hint}")
            if all(found):
                *controls, target = (names[0] for names in found)
                pairs.append(PicturePair(key, tuple(controls), target))
        keys = {key for found in self.pictures for key in found}
        for key in self.texts.keys() - keys:
            self.faults.append(f"{shorten(self.texts[key][0])}: is a caption without pictures of its name")
        return pairs


def find_roles(names: Sequence[str], controls: Sequence[str] = (), target: str = "") -> Roles:
    """Sort files into roles. `controls` and `target` are folders, or ends of names where they begin with `_`, `-` or
    `.`; where they are empty, the usual ones are looked for."""
    prefix = _common_folder(names, {TARGET, CONTROL, target, *controls})
    shown = {name: name[len(prefix) :] for name in names}
    if target or controls:
        chosen = (*(controls or [CONTROL]), target or TARGET)
        if fault := _unusable(chosen):
            return Roles(chosen, [{} for _ in chosen], faults=[fault])
        return _by_suffix(shown, chosen) if all(map(is_suffix, chosen)) else _in_folders(shown, chosen)
    if any(_below(TARGET, name) for name in shown.values()):
        return _in_folders(shown, (*_numbered_folders(shown.values()), TARGET))
    stems = [PurePosixPath(name).stem for name in shown.values() if is_picture(name)]
    for control, end in SUFFIXES:
        if any(stem.endswith(end) for stem in stems):
            return _by_suffix(shown, (*_numbered_suffixes(stems, control), end))
    return Roles((CONTROL, TARGET), [{}, {}], faults=[_no_layout(stems)])


def is_suffix(text: str) -> bool:
    """Tell whether the name of a role is the end of file names, not a folder."""
    return text.startswith(("_", "-", "."))


def is_picture(name: str) -> bool:
    """Tell by its extension whether a file is a picture that can be read."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def bare_key(name: str, roles: Roles) -> str:
    """Key of the pair that a table means by a name: with or without folder, end and extension."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.with_suffix("").as_posix() if path.suffix.lower() in PICTURES | {TEXT} and path.name else str(path)
    for role in roles.names:
        stem = stem.removesuffix(role) if is_suffix(role) else stem.removeprefix(f"{role}/")
    return unicodedata.normalize("NFC", stem)


def _unusable(roles: Sequence[str]) -> str | None:
    """Say which of the named roles cannot be looked for; None where all can."""
    names = [role.strip("/").lower() for role in roles]
    if not all(map(str.strip, names)):
        return "the name of a folder of control images or targets is empty: name a folder in it"
    twice = next((role for role, name in zip(roles, names, strict=True) if names.count(name) > 1), None)
    return f'"{shorten(twice)}" is named twice, of control images and targets each has its own' if twice else None


def _no_layout(stems: Sequence[str]) -> str:
    if not stems:
        return "it holds no pictures"
    return (
        'there is no folder "target" beside "control", and no names end in _start and _end: name the folders, or the '
        "ends of the names, of control and target"
    )


def _twice(names: Sequence[str]) -> str:
    return f"{' and '.join(shorten(name) for name in names[:3])}: are one name twice; keep one of them"


def _common_folder(names: Sequence[str], roles: set[str]) -> str:
    """Folder, with a slash, that all files are in; empty if there is none or it has a role."""
    first = {name.split("/", 1)[0] for name in names}
    if len(first) != 1 or any("/" not in name for name in names):
        return ""
    (folder,) = first
    return "" if folder.lower() in {role.lower() for role in roles} else f"{folder}/"


def _below(folder: str, name: str) -> str | None:
    """Path below a folder, whose own upper and lower case do not matter; None for a file elsewhere."""
    start = f"{folder.strip('/')}/"
    return name[len(start) :] if name[: len(start)].lower() == start.lower() else None


def _in_folders(names: dict[str, str], folders: Sequence[str]) -> Roles:
    roles = Roles(tuple(f"{folder.strip('/')}" for folder in folders), [{} for _ in folders])
    for name, shown in names.items():
        inside = {role: rest for role, folder in enumerate(folders) if (rest := _below(folder, shown)) is not None}
        if inside:
            role = min(inside, key=lambda found: len(inside[found]))  # one folder may lie in another
            roles.add(role, PurePosixPath(inside[role]).with_suffix("").as_posix(), name)
    missing = [name for name, found in zip(roles.names, roles.pictures, strict=True) if not found]
    if missing:
        roles.faults.append(f"there are no pictures in {', '.join(missing)}")
    return roles


def _by_suffix(names: dict[str, str], suffixes: Sequence[str]) -> Roles:
    roles = Roles(tuple(suffixes), [{} for _ in suffixes])
    for name, shown in names.items():
        stem = PurePosixPath(shown).with_suffix("").as_posix()
        ends = [role for role, suffix in enumerate(suffixes) if stem.endswith(suffix)]
        role = max(ends, key=lambda found: len(suffixes[found]), default=None)
        roles.add(role, stem if role is None else stem[: -len(suffixes[role])], name)
    return roles


def _numbered_folders(names: Iterable[str]) -> list[str]:
    """Folders of control images: `control`, then `control_2` and so on as far as there are any."""
    first = {name.split("/", 1)[0].lower() for name in names if "/" in name}
    numbers = [int(found[1] or 1) for name in first if (found := re.fullmatch(rf"{CONTROL}(?:_([2-9]))?", name))]
    return [CONTROL if number == 1 else f"{CONTROL}_{number}" for number in range(1, max(numbers, default=1) + 1)]


def _numbered_suffixes(stems: Iterable[str], control: str) -> Iterator[str]:
    """Ends of the names of control images: `_start`, then `_start2` or `_start_2` and so on."""
    pattern = re.compile(rf"{control}(_?)([2-9])\Z")
    found = {int(match[2]): match[0] for stem in stems if (match := pattern.search(stem))}
    yield control
    yield from (found.get(number, f"{control}{number}") for number in range(2, max(found, default=1) + 1))
