"""Upload of a run to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..errors import BadInput, RunFailed, shorten
from .model_card import PROGRAM_TAG
from .package import RunPackage

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from ..models.edit_model import EditModel

_FRESH_FILES = {".gitattributes"}
"""Files that the hub makes in a new repository."""


def check_repo(repo: str) -> None:
    """Raise BadInput for what is no name of a repository on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise BadInput(
        f'"{shorten(repo)}" is not a repository on the Hugging Face hub; give OWNER/NAME, in letters, digits, '
        '"-", "_" and ".".'
    )


def check_login() -> None:
    """Raise BadInput when nobody is logged in at the hub."""
    from huggingface_hub import get_token

    token = get_token()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        # HTTP libraries repeat a header that they refuse in their message, and the token with it.
        raise BadInput("The Hugging Face token (HF_TOKEN, or that of the login) has characters that no token has.")
    if not token:
        raise BadInput(
            "There is no login for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN to a token that may "
            "write. Nothing was sent."
        )


def push(package: RunPackage, repo: str, private: bool, model: EditModel) -> str:
    """Upload a run in one commit, to a new repository or to one that was pushed to before; returns its address.

    `private` makes a new repository private, and refuses one that is public. `model` is the run's base model. Raises
    BadInput for a name, a login or a repository that cannot be used, and RunFailed when the hub fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repo(repo)
    check_login()
    api = HfApi(library_name=PROGRAM_TAG)
    with TemporaryDirectory() as folder:
        with _explained(api, repo):
            is_new = not _exists(api, repo, private)
        files = package.write(Path(folder), repo, model)
        with _explained(api, repo):
            if is_new:
                api.create_repo(repo, private=private)
            api.create_commit(
                repo,
                [CommitOperationAdd(name, str(path)) for name, path in files.items()],
                commit_message=f"LoRA of step {package.step}",
            )
    return f"{api.endpoint}/{repo}"


def _exists(api: HfApi, repo: str, private: bool) -> bool:
    """Tell whether the repository exists. Raises BadInput for one that must not be written to."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return False
    files = {file.rfilename for file in info.siblings or []}
    if PROGRAM_TAG not in (info.tags or []) and not files <= _FRESH_FILES:
        raise BadInput(
            f"{repo} exists on the Hugging Face hub and was not made by this program, so it is not overwritten. Give "
            "another name."
        )
    if private and not info.private:
        raise BadInput(f"{repo} is public on the Hugging Face hub. Push without private, or give another name.")
    return True


@contextmanager
def _explained(api: HfApi, repo: str) -> Iterator[None]:
    """Context that turns the client's errors into BadInput and RunFailed. None of its messages has the token."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except (BadInput, RunFailed):
        raise
    except OfflineModeIsEnabled:
        raise BadInput("HF_HUB_OFFLINE is set, so nothing was sent; unset it to push.") from None
    except HfHubHTTPError as error:
        raise _refusal(error.response.status_code, repo, shorten(error.server_message or "")) from None
    except Exception as error:  # The client's HTTP library, and with it the class of its errors, differs by version.
        raise RunFailed(
            f"The Hugging Face hub at {api.endpoint} cannot be reached, or broke off the upload: {shorten(str(error))}"
        ) from None


def _refusal(status: int, repo: str, reason: str) -> BadInput | RunFailed:
    """Return the error for an answer of the hub."""
    if status == 401:
        return BadInput(
            "The Hugging Face hub does not accept your token (HF_TOKEN, or that of the login). Make one that may write "
            "at https://huggingface.co/settings/tokens and run `hf auth login`."
        )
    if status in (403, 404):
        return BadInput(
            f"Your login at the Hugging Face hub may not write to {repo}: it belongs to somebody else, or the token "
            "may only read. Give a repository of your own."
        )
    if status == 409:
        return BadInput(f"{repo} exists on the Hugging Face hub already. Give another name.")
    return RunFailed(f"The Hugging Face hub refused the upload to {repo} with status {status}: {reason}")
