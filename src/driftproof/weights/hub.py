"""Models by their names on the Hugging Face hub: a name becomes a directory, once, before anything else is looked at.

Guarantees: an existing directory of that name wins; only configuration, tokenizer, chat templates and safetensors are
downloaded, never code or pickles; what is in the hub's cache is found without a network.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from driftproof.errors import ModelError
from driftproof.weights.settings import ModelSettings

DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
LEFT_OUT = ("*/*.safetensors", "*/*.json", "consolidated*.safetensors")
"""Weights in the form of other programs, beside those that transformers opens."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?:hf:/*|https?:/+huggingface\.co/)?({_PART}/{_PART})(?:(?:@|/tree/)(.+))?")
"""A path makes one of several slashes."""
_CACHED = re.compile(rf"models--({_PART}?)--({_PART})/snapshots/([0-9a-f]{{40}})/?")


def locate(settings: ModelSettings) -> ModelSettings:
    """The settings with directories in the place of hub names; those of the hub's cache say which commit they are.

    Raises:
        ModelError: a name that the hub does not know or does not give, or a network that is needed and not there.
    """
    path = find_model(settings.path, settings.revision)
    return replace(settings, path=path, revision=None, reference=settings.reference and find_model(settings.reference))


def find_model(path: Path, revision: str | None = None) -> Path:
    """The directory of a model: `path` itself where it is one or no hub name, else `OWNER/NAME` or
    `OWNER/NAME@REVISION` as the hub has it, downloaded unless it is in the hub's cache. The address of a model's page
    names it, too.

    A directory of the cache that has been removed is downloaded again. Raises as `locate` does.
    """
    if path.exists():
        if revision is not None:
            raise ModelError(
                f"model.revision is {revision!r}, but {path} is a directory here, which has no revisions; leave it "
                "out, or give the model's name on the hub"
            )
        return path
    if origin := origin_of(path):
        return _download(*origin)
    name_and_revision = _NAME.fullmatch(str(path))
    if name_and_revision is None:
        return path
    name, wanted = name_and_revision.groups()
    if wanted is not None and revision not in (None, wanted):
        raise ModelError(f"{path} names the revision {wanted!r}, and model.revision is {revision!r}; give one of them")
    return _download(name, wanted or revision)


def origin_of(path: Path) -> tuple[str, str] | None:
    """The hub name and commit of a directory of the hub's cache, told by its path; None for any other."""
    found = _CACHED.search(f"{path}/")
    return (f"{found[1]}/{found[2]}", found[3]) if found and found.end() == len(f"{path}/") else None


def named(path: Path) -> str:
    """A model's name for people: `OWNER/NAME@COMMIT` for a directory of the hub's cache, else the path."""
    origin = origin_of(path)
    return "@".join(origin) if origin else str(path)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=[*DOWNLOADED], ignore_patterns=[*LEFT_OUT])
    except Exception as error:
        # What the hub's library, its HTTP client and the disk raise has no narrower base.
        raise ModelError(_explain(name, revision, error)) from error
    finally:
        if not silent:
            enable_progress_bars()
    return Path(found).absolute()


def _explain(name: str, revision: str | None, error: Exception) -> str:
    """The sentence for a download that failed: why, and what to do."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name} is gated: accept its terms at {hub}/{name}, then log in with `hf auth login` or set HF_TOKEN; or "
            "give the path of a model directory"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on the hub; correct model.revision, or leave it out"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name} is no model directory here, and the hub at {hub} has no such model, or not for you (log in with "
            f"`hf auth login` or set HF_TOKEN); correct it, or make a tiny model: `driftproof tiny-model {name}`"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({_network(error)})"
        version = f" --revision {revision}" if revision else ""
        return (
            f"{name} is no model directory here, is not in the hub's cache, or not whole, and {why}; where there is a "
            f"network run `hf download {name}{version}` and copy what it says to {constants.HF_HUB_CACHE}, or give the "
            f"path of a model directory, or make a tiny model: `driftproof tiny-model {name}`"
        )
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return (
        f"{name} cannot be downloaded from the hub at {hub}: {said}; try again, or give the path of a model directory"
    )


def _network(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"
