"""Datasets on the Hugging Face hub: their parquets, downloaded once for each revision into the hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ..errors import BadInput, RunFailed, shorten
from .dataset_files import MAX_FILES, SUFFIXES, choose_files, dataset_files, is_pattern, matches

_ADDRESS = re.compile(r"hf://datasets/([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?(?:/(.*))?\Z")

MAX_ADDRESS = 1000
"""Characters of an address; a judgement: names on the hub have at most 96, paths a few hundred."""


class NotDownloaded(BadInput):
    """Dataset that is not in the hub's cache, where nothing may be downloaded."""


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Parts of an address such as `hf://datasets/OWNER/NAME@REVISION/data/train-*.parquet`."""

    repo: str
    revision: str
    path: str
    """File, folder or pattern in the repository; empty for all of it."""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read an address. Raises BadInput for any other text."""
        found = _ADDRESS.match(text) if len(text) <= MAX_ADDRESS else None
        revision = unquote(found[2] or "main") if found else ""
        path = PurePosixPath(found[3] or "") if found else PurePosixPath()
        if not found or not _stays_inside(found[1]) or not _stays_inside(revision) or not _stays_inside(str(path)):
            raise BadInput(f'"{shorten(text)}" is not an address of a dataset; write hf://datasets/OWNER/NAME/FILE.')
        return cls(found[1], revision, "" if str(path) == "." else str(path))

    def __str__(self) -> str:
        return "/".join(filter(None, (f"hf://datasets/{self.repo}@{self.revision}", self.path)))


def _stays_inside(name: str) -> bool:
    """Tell whether a name of the hub is below the folder that it becomes a path in, on every system."""
    return (
        name.isprintable()
        and "\\" not in name
        and not name.startswith("/")
        and name[1:2] != ":"
        and ".." not in name.split("/")
    )


def is_hub_address(text: str) -> bool:
    """Tell whether a text is an address on the hub."""
    return text.startswith("hf://")


def find_on_hub(text: str, download: bool = True) -> Path:
    """Return the file, folder or pattern in the hub's cache that an address means, downloading what is not there yet.

    Without `download`, and where the hub is set to be offline, what is in the cache is taken. Raises BadInput and
    RunFailed.
    """
    from huggingface_hub import constants

    address = HubAddress.parse(text)
    if not download or constants.is_offline_mode():
        return _cached(address)
    with _explained(address):
        return _downloaded(address)


def _cached(address: HubAddress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(address.repo, repo_type="dataset", revision=address.revision, local_files_only=True)
        path = Path(folder) / address.path
        if all(file.is_file() for file in dataset_files(path)):
            return path
    except (LocalEntryNotFoundError, HFValidationError, BadInput, OSError):
        pass
    raise NotDownloaded(f"{address} is not downloaded yet.")


def _downloaded(address: HubAddress) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(address.repo, revision=address.revision)
    names = _chosen([name for file in info.siblings or [] if _stays_inside(name := file.rfilename)], address)
    folder = Path()
    for name in names:
        # By the name of the revision, so that the cache knows later which commit that was.
        path = Path(hf_hub_download(address.repo, name, repo_type="dataset", revision=address.revision))
        folder = path.parents[len(PurePosixPath(name).parts) - 1]
        if folder.name != info.sha:
            raise RunFailed(f"{address} was changed while it was downloaded. Start again.")
    return folder / address.path


def _chosen(names: Sequence[str], address: HubAddress) -> list[str]:
    """Files of a repository that an address means. Raises BadInput."""
    if address.path in names:
        return [address.path]
    parts = PurePosixPath(address.path).parts
    if is_pattern(Path(address.path)):
        found = [name for name in names if name.lower().endswith(SUFFIXES) and matches(name.split("/"), parts)]
    else:
        below = [PurePosixPath(name) for name in names if PurePosixPath(name).is_relative_to(address.path)]
        found = [str(name) for name in choose_files(below, PurePosixPath(address.path), str(address))] if below else []
    if not found:
        raise BadInput(f"{address}: the dataset has no parquet file of this name.")
    if len(found) > MAX_FILES:
        raise BadInput(f"{address} holds more than {MAX_FILES:,} files; name some of them by a pattern.")
    return found


@contextmanager
def _explained(address: HubAddress) -> Iterator[None]:
    """Context that turns the client's errors into BadInput and RunFailed. None of its messages has the token."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        yield
    except (BadInput, RunFailed):
        raise
    except GatedRepoError:
        raise BadInput(f"{address} is only for those who have accepted its terms: do that at the hub's page.") from None
    except NoRevision:
        raise BadInput(f'{address}: the dataset has no revision "{shorten(address.revision)}".') from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(
            f"{address} is not found on the Hugging Face hub. A private dataset needs a login: `hf auth login`, or "
            "HF_TOKEN."
        ) from None
    except HfHubHTTPError as error:
        raise RunFailed(
            f"The Hugging Face hub refused {address} with status {error.response.status_code}: "
            f"{shorten(error.server_message or '')}"
        ) from None
    except Exception as error:  # The client's HTTP library, and with it the class of its errors, differs by version.
        raise RunFailed(
            f"{address} cannot be downloaded: {shorten(str(error))}. Set HF_HUB_OFFLINE=1 to use what is in the cache."
        ) from None
