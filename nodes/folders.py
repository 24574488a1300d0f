"""ComfyUI's folders: finding inputs and LoRA files, naming run folders, publishing results."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import folder_paths
from PIL import Image

from ..trainer.config.columns import Columns
from ..trainer.errors import BadInput
from ..trainer.files import atomic_write
from ..trainer.paths import find_files, path_kind

EXAMPLES = Path(__file__).parent.parent / "example_workflows"
"""Folder of the example parquet and request, which are found by their bare names."""
CACHE = "edit_trainer_cache"
MAX_LISTED = 1000
"""Parquets in the page's menu; a judgement: more would make the page slow."""
NO_LORA = "none"
_NOT_A_NAME = re.compile(r'[\x00-\x1f<>:"/\\|?*]|^[. ]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def input_folder() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    """ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory())


def runs_folder() -> Path:
    """Folder of all run folders."""
    return output_folder() / "edit_trainer"


def cache_folder() -> Path:
    """Folder of encoded images and texts and of downloads, shared by all runs."""
    return runs_folder() / CACHE


def run_folder(name: str, resume: bool) -> Path:
    """Folder of the run of this name; without `resume` the first of `<name>`, `<name>-2`, ... that does not exist.

    Raises BadInput for a name that is not valid for a folder on every system.
    """
    if not is_folder_name(name) or name == CACHE:
        raise BadInput(
            f'run_name: "{name}" cannot be used; give one folder name of at most 100 characters, without any of '
            '< > : " / \\ | ? * and without a dot or a space at its start or end.'
        )
    folder = runs_folder() / name
    number = 1
    while not resume and folder.exists():
        number += 1
        folder = folder.with_name(f"{name}-{number}")
    return folder


def is_folder_name(name: str) -> bool:
    """Tell whether a name is valid for a folder or file on every system."""
    return 0 < len(name) <= 100 and not _NOT_A_NAME.search(name)


def find_parquet(resource: str, download: bool = False) -> Path:
    """Find the parquet of a `resource` input, a folder or a pattern of several. With `download` one on the Hugging Face
    hub is downloaded, without it NotDownloaded is raised. Raises BadInput naming every place tried."""
    from ..trainer.data.load_request import resolve_resource

    if not resource.strip():
        raise BadInput("resource: is required but empty; name a parquet file.")
    return resolve_resource(resource.strip(), input_folder(), EXAMPLES, download)


def find_contained_parquet(resource: str) -> Path:
    """Find a parquet, or a folder or a pattern of several, for the page: only in ComfyUI's input and output folders
    and among the examples.

    Raises BadInput, with the same message whether a file exists outside of them or not, and for a folder or a pattern
    in them that cannot be used.
    """
    from ..trainer.data.hub_files import find_on_hub, is_hub_address
    from ..trainer.data.load_request import resource_names

    text = resource.strip()
    if is_hub_address(text):
        return find_on_hub(text, download=False)
    names = [text, *map(str, resource_names(Path(text))[1:])]
    places = [contained_path(start, name) for name in names for start in (Path(), EXAMPLES, input_folder())]
    found = [place for place in places if place is not None and text]
    with suppress(OSError):
        if file := next((place for place in found if place.is_file()), None):
            return file
        if several := next((place for place in found if _holds_datasets(place)), None):
            return several
    raise BadInput(f'"{resource}" is not found in ComfyUI\'s input folder.')


def _holds_datasets(place: Path) -> bool:
    """Tell whether a place in ComfyUI's folders is a folder, or a pattern of files; links of them may not lead out.

    Raises BadInput where it is not clear which files are meant.
    """
    from ..trainer.data.dataset_files import dataset_files, is_pattern, match_files

    if not place.is_dir() and not (is_pattern(place) and any(match_files(place))):
        return False
    return all(contained_path(Path(), str(file)) for file in dataset_files(place))


def contained_path(start: Path, name: str) -> Path | None:
    """Resolve a path from the page; None outside of ComfyUI's input and output folders and the examples.

    A name on another computer (`\\\\server\\share`) is refused before anything looks at it: Windows would send that
    computer the user's credentials.
    """
    if name.replace("\\", "/").startswith(("//", "/??/")):
        return None
    try:
        path = (start / name).resolve()
        roots = [folder.resolve() for folder in (input_folder(), output_folder(), EXAMPLES)]
    except (OSError, ValueError, RuntimeError):
        return None
    return path if any(path.is_relative_to(root) for root in roots) else None


def contained_images(path: Path, images_root: str) -> Path | None:
    """Folder that the relative paths in a dataset start from, for the page: that of its files, or one in ComfyUI's
    folders."""
    from ..trainer.data.dataset_files import data_folder

    folder = data_folder(path)
    return contained_path(folder, images_root) if images_root else folder


def is_outside(name: str) -> bool:
    """Tell whether a path is one that the page is not shown: absolute, of a home, or out of ComfyUI's input folder."""
    return contained_path(input_folder(), name) is None or name.strip().startswith("~")


def list_parquets() -> list[str]:
    """Paths of the parquets in the input folder, relative to it, and of the folders that hold several; then the names
    of the examples."""
    found = [path.relative_to(input_folder()) for path in find_files(input_folder(), ".parquet")]
    parents = Counter(path.parent.as_posix() for path in found)
    folders = [folder for folder, count in parents.items() if count > 1 and folder != "."]
    inside = sorted([*(path.as_posix() for path in found), *folders])
    return inside[:MAX_LISTED] + sorted(path.name for path in EXAMPLES.glob("*.parquet"))


def find_request(text: str) -> Path | str:
    """Pasted request JSON, or the path of the named file. Raises BadInput when there is no such file."""
    text = text.strip()
    if not text:
        raise BadInput("request: is empty; paste the JSON of a fine-tune request, or name a JSON file.")
    if text[0] in "{[" or "\n" in text:
        return text
    places = [Path(text), input_folder() / text, EXAMPLES / text]
    for place in places:
        if path_kind(place) == "file":
            return place
    tried = ", ".join(str(place.absolute()) for place in places)
    raise BadInput(f'request: "{text}" is neither JSON nor a file; tried {tried}.')


def lora_options() -> list[str]:
    """Options of a LoRA menu: `NO_LORA`, then the LoRA files that ComfyUI lists."""
    return [NO_LORA, *folder_paths.get_filename_list("loras")]


def find_lora(name: str) -> Path | None:
    """Path of a LoRA menu's option; None for `NO_LORA`. Raises BadInput when the file no longer exists."""
    if name == NO_LORA:
        return None
    # ComfyUI looks inside its LoRA folders alone, whatever the name.
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise BadInput(f'The LoRA "{name}" is no longer in ComfyUI\'s LoRA folders; choose another.')
    return Path(path)


def lora_state(name: str | None) -> str | float:
    """Value that changes with the LoRA file, for `fingerprint_inputs`; `name` is None where a link supplies it."""
    if name is None:
        return float("nan")
    try:
        path = find_lora(name)
        return file_state(path) if path else ""
    except (BadInput, OSError):
        return "not there"


def file_state(path: Path) -> str:
    """Path, size and modification time of a file, for `fingerprint_inputs`."""
    state = path.stat()
    return f"{path.absolute()} {state.st_size} {state.st_mtime_ns}"


def dataset_state(parquet: Path, columns: Columns, images_root: str = "") -> str:
    """Value that changes with a dataset's files, their edits and their image files, for `fingerprint_inputs`.

    Raises BadInput.
    """
    from ..trainer.data.dataset_files import dataset_files, find_images_root
    from ..trainer.data.digests import pictures_state
    from ..trainer.data.row_edits import edits_file

    files = [path for file in dataset_files(parquet) for path in (file, edits_file(file))]
    states = [file_state(path) for path in files if path.is_file()]
    return f"{' '.join(states)} {pictures_state(parquet, columns, find_images_root(images_root, parquet))}"


def save_control(picture: Image.Image) -> Path:
    """Save a control image as PNG in ComfyUI's temporary folder, named by its content."""
    digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    path = _control_folder() / f"{digest[:32]}.png"
    if not path.is_file():
        with atomic_write(path, durable=False) as temporary:
            picture.save(temporary, "PNG")
    return path


def is_saved_control(path: str) -> bool:
    """Tell whether `save_control` made a path."""
    return Path(path).parent == _control_folder()


def publish_lora(weights: Path) -> Path:
    """Copy a run's LoRA to where ComfyUI's loaders list it. Raises RunFailed when it cannot be written."""
    path = output_folder() / "loras" / weights.name
    if not path.is_file() or path.stat().st_size != weights.stat().st_size or path.read_bytes() != weights.read_bytes():
        with atomic_write(path) as temporary:
            shutil.copyfile(weights, temporary)
    return path


def publish_transformer(weights: Path) -> Path:
    """Hard-link a run's transformer to where ComfyUI's loaders list it, or copy it where the disk has no links.

    Raises RunFailed when it cannot be written.
    """
    path = output_folder() / "diffusion_models" / weights.name
    if not path.is_file() or not path.samefile(weights):
        with atomic_write(path, durable=False) as temporary:
            try:
                os.link(weights, temporary)
            except OSError:
                shutil.copyfile(weights, temporary)
    return path


def _control_folder() -> Path:
    return Path(folder_paths.get_temp_directory()).absolute() / "edit_trainer"
