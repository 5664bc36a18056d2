"""Files of a hub repository, and in one line why one could not be had.

``pipelines`` and ``reward_heads`` stand alone, so each has this file; a test keeps both equal.
"""

from collections.abc import Iterator
from pathlib import Path

# Seconds until the hub must have answered. The client itself would try again for half a minute.
ANSWER_TIME = 5.0


def download(name: str, file: str, revision: str | None = None) -> Path:
    """A file of a hub repository, from the local cache or from the hub.

    Raises:
        ValueError: it cannot be had, see ``why_not``.
    """
    from huggingface_hub import hf_hub_download

    require(name, file, revision)
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except Exception as error:
        raise ValueError(why_not(name, file, error)) from error


def require(name: str, file: str, revision: str | None = None) -> None:
    """Ask the hub once, and not at all for a file in the local cache, whether a file can be had.

    Raises:
        ValueError: it cannot, see ``why_not``.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=ANSWER_TIME)
    except Exception as error:
        raise ValueError(why_not(name, file, error)) from error


def reach(name: str) -> None:
    """Ask the hub once for a repository of which nothing is in the local cache.

    For what other libraries download: they would go on asking for half a minute.

    Raises:
        ValueError: there is no such repository, or no way to it; see ``why_not``.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    # What a library has downloaded once, it finds without the hub.
    cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    if cache.is_dir() and any(cache.iterdir()):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=ANSWER_TIME)
    except errors.EntryNotFoundError:
        # The repository is there, which is all that was asked.
        pass
    except Exception as error:
        raise ValueError(why_not(name, "config.json", error)) from error


def why_not(name: str, file: str, error: Exception) -> str:
    """Why a repository's file could not be had, and what would help, in one line."""
    from huggingface_hub import constants, errors

    # Libraries wrap the hub client's errors, so the causes count too.
    def caused_by(*kinds: type[Exception]) -> bool:
        return any(isinstance(each, kinds) for each in causes(error))

    # Offline, the client may say no more than that the file is not on the disk.
    offline = constants.HF_HUB_OFFLINE and caused_by(errors.LocalEntryNotFoundError)
    if offline or caused_by(errors.OfflineModeIsEnabled):
        said = (
            f"no such folder, and HF_HUB_OFFLINE is set while {file} is not in the cache; "
            "unset it, or want the path of a local copy"
        )
    elif caused_by(errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        said = f"gated: accept the licence on the model's page, {page}, then hf auth login"
    elif caused_by(errors.RevisionNotFoundError):
        said = f"no such revision; see {constants.ENDPOINT}/{name}/tree/main"
    elif caused_by(errors.RepositoryNotFoundError):
        said = (
            "no such folder, and no such repository on the hub; a private one wants hf auth login"
        )
    elif caused_by(errors.EntryNotFoundError) and not caused_by(errors.LocalEntryNotFoundError):
        said = f"the repository has no {file}"
    elif answers := [each for each in causes(error) if isinstance(each, errors.HfHubHTTPError)]:
        status = answers[0].response.status_code
        said = f"the hub answered {status}" + (
            "; want hf auth login" if status in (401, 403) else ""
        )
    elif any(_is_of_the_network(each) for each in causes(error)):
        said = (
            f"no such folder, and no network: {constants.ENDPOINT} does not answer; "
            "want a connection, or the path of a local copy"
        )
    else:
        text = " ".join(str(error).split())[:160]
        said = f"the hub gave no {file} ({type(error).__name__}: {text})"
    return f"{name}: {said}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_the_network(error: BaseException) -> bool:
    """Whether a connection failed, in any library that the hub's client has used."""
    library = type(error).__module__.split(".")[0]
    return library in ("httpx", "httpx2", "requests", "urllib3") or isinstance(
        error, ConnectionError | TimeoutError
    )
