"""From the name of a model to its file: on this disk, or on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import ModuleType

from pcssl.errors import UserError, in_one_line
from pcssl.models.checkpoints.exported import FILE
from pcssl.models.checkpoints.files import SUFFIXES
from pcssl.models.checkpoints.known import CARD, KNOWN

_SCHEME = "hf://"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find_file(name: str | Path) -> Path:
    """The file of a model, downloaded into the Hub's cache if need be.

    name: a file; a folder that holds model.safetensors or checkpoint.pt; a name in `KNOWN`; or on the Hub
    owner/name, hf://owner/name, or hf://owner/name/FILE. Raises UserError if there is no such thing.
    """
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    text = str(name)
    if text.startswith(_SCHEME):
        owner, _, rest = text.removeprefix(_SCHEME).partition("/")
        repository, _, file = rest.partition("/")
        if not _REPOSITORY.fullmatch(f"{owner}/{repository}"):
            raise UserError(f"{text}: write it as hf://owner/name or hf://owner/name/file")
        return _download(f"{owner}/{repository}", file)
    if text in KNOWN and not path.exists():
        return _download(KNOWN[text].repo, KNOWN[text].file)
    if not path.exists() and path.suffix not in SUFFIXES and _REPOSITORY.fullmatch(text):
        return _download(text, "")
    return path


def _in_folder(folder: Path) -> Path:
    for name in (FILE, "checkpoint.pt"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} is a folder without {FILE} or checkpoint.pt; name the file")


def _download(repository: str, file: str) -> Path:
    hub = _hub(repository)
    try:
        return _fetch(hub, repository, file or _choose(hub, repository))
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"no model {repository!r}: neither a file or folder here nor one that you may see on the Hugging Face Hub"
        ) from error
    except hub.errors.RemoteEntryNotFoundError as error:
        raise UserError(f"no file {file!r} in {repository} on the Hugging Face Hub") from error
    except UserError:
        raise
    except Exception as error:  # those of the network belong to whichever library the Hub's takes
        raise UserError(f"cannot get {repository} from the Hugging Face Hub: {in_one_line(error)}") from error


def _fetch(hub: ModuleType, repository: str, file: str) -> Path:
    path = Path(hub.hf_hub_download(repository, file))
    # The card names the licence; some formats of safetensors have a config, and need it.
    for beside in (CARD, *(["config.json"] if file.endswith(".safetensors") else [])):
        with contextlib.suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repository, str(Path(file).with_name(beside)))
    return path


def _hub(repository: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"no file or folder {repository}; to get a model of that name from the Hugging Face Hub, "
            "pip install 'pcssl[hub]'"
        ) from error
    return huggingface_hub


def _choose(hub: ModuleType, repository: str) -> str:
    """Our own file, else the only file of weights, else the one called like the repository."""
    with contextlib.suppress(hub.errors.EntryNotFoundError):
        hub.hf_hub_download(repository, FILE)  # from the cache without a network, where a listing is not to be had
        return FILE
    weights = [file for file in hub.list_repo_files(repository) if file.endswith(SUFFIXES)]
    named = [file for file in weights if Path(file).stem == repository.partition("/")[2]]
    for found in (weights, named):
        if len(found) == 1:
            return found[0]
    listed = f"several: {', '.join(weights)}; name one, hf://{repository}/FILE" if weights else "none"
    raise UserError(f"{repository} on the Hugging Face Hub has no {FILE}, and of other files of weights {listed}")
