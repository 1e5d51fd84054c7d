"""A model's name -> a folder on this machine: a folder already, or a hub id, "owner/name".

The hub is asked once, briefly, before anything is loaded: Transformers on its own retries every file for minutes when
the network is down. Weights are taken as safetensors only, never as pickles.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from videollm_mod.types import InputError

TIMEOUT = 5.0  # seconds for the hub's answer
WANTED: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"],
    "ignore_patterns": ["original/*"],  # Llama's weights once more
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether a name may be a hub id: "owner/name", and no folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def folder_of(name: str | Path, what: str) -> Path:
    """The folder of a model; one of a hub is fetched, or taken from the local cache when the hub cannot be reached.

    `what` it is, for the error: "model", "vision tower". Raises InputError when it cannot be had.
    """
    name = str(name)
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_id(name):
        raise InputError(f"{what} folder {name!r} does not exist; give a folder, or a hub id such as owner/name.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=TIMEOUT)
        return Path(snapshot_download(name, **WANTED))
    except GatedRepoError as error:
        raise InputError(
            f"{what} {name!r} is gated; accept its terms on its page, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{what} {name!r} is no folder, and the hub has no such model or hides it; check the name, or run "
            "`hf auth login`."
        ) from error
    except Exception as error:  # no network, no such host, offline mode, a proxy's page: told apart by nobody
        if isinstance(error, OSError) and error.errno:  # a full disk
            raise
        try:
            return Path(snapshot_download(name, **WANTED, local_files_only=True))
        except Exception:  # not there, or not all of it
            raise InputError(
                f"{what} {name!r} is no folder, and the hub cannot be reached ({_short(error)}); check the name and "
                "the network, or give a folder."
            ) from error


def push_folder(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder, all of it and nothing else, as the model `name`; returns its address. Raises InputError."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name!r} is no hub id; give owner/name.")
    api = HfApi(token=token)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    adds = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        # one commit: a model is never half there (upload_folder may make several)
        api.create_commit(name, adds, commit_message="A streaming model of videollm-mod")
    except HfHubHTTPError as error:
        raise InputError(
            f"the hub refuses {name!r} ({_short(error)}); check the owner, and your token: `hf auth login`."
        ) from error
    except Exception as error:  # see above
        raise InputError(f"{name!r}: the hub cannot be reached ({_short(error)}); check the network.") from error
    return address


def _short(error: Exception) -> str:
    """A few words on why the hub failed."""
    response = getattr(error, "response", None)
    return f"status {response.status_code}" if response is not None else type(error).__name__
