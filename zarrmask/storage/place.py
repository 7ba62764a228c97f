"""Where files lie: in a folder here, or at a URL.

A local place is a `pathlib.Path`, any other a `upath.UPath`; both are used alike. What differs is
in this module, in `atomic.py` and in `lock.py`: at a URL there are neither links nor folders
without files, a file is written whole or not at all, and a round trip takes its time, so that many
small files are asked for at once.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upath import UPath
from zarr.storage import FsspecStore, LocalStore

from zarrmask.errors import OutputError, ZarrmaskError

Place = Path | UPath
S3 = ("s3", "s3a")

ATTEMPTS, FIRST_ATTEMPTS = 8, 3
"""How often a request is made before a store counts as gone, half a minute; how often at first."""
CONNECTIONS = 64
"""To one store at once: thousands of small files are read in seconds."""
# Not the container of abfs://container@account.
_LOGIN = re.compile(r"(https?://|://(?=[^/\s'\"@]*:))[^/\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]*")


def absolute(path: Path) -> Path:
    """Make a path absolute; a .. in it leads up from where a link leads, as the system sees it."""
    return path.resolve() if ".." in path.parts else path.absolute()


def place_of(path: str | os.PathLike[str] | UPath) -> Place:
    """Give the place that a path or a URL names; a local one is absolute.

    Parameters
    ----------
    path : path-like, str or UPath
        A URL's settings and credentials come from the environment and from the configuration files
        of the library that is behind its protocol, or from the storage options of a `UPath`.

    Raises
    ------
    ZarrmaskError
        Where nothing installed here knows the URL's protocol.
    """
    text = str(path)
    if isinstance(path, Path) or "://" not in text:
        return absolute(Path(text))
    try:
        place: UPath = UPath(path)
        if place.protocol in ("file", "local"):
            return absolute(Path(place.path))
        place = UPath(place, **_options(place))
        place.fs  # noqa: B018  imports what the protocol needs
    except (ImportError, ValueError) as error:
        raise ZarrmaskError(f"{public(text)} cannot be opened: {error}") from None
    return place


def _options(place: UPath) -> dict[str, Any]:
    """Storage options of a store that others write to as well, and that is given time."""
    options: dict[str, Any] = {}
    if place.protocol in (*S3, "gs", "gcs", "abfs", "abfss", "az"):
        options["use_listings_cache"] = False
    if place.protocol in S3:
        settings = {"retries": _retries(ATTEMPTS), "max_pool_connections": CONNECTIONS}
        options["config_kwargs"] = settings
    return {**options, **place.storage_options}


def _retries(attempts: int) -> dict[str, Any]:
    return {"mode": "standard", "total_max_attempts": attempts}


def hasty(place: UPath) -> UPath:
    """Give the same place, but soon given up, to find out whether it answers at all."""
    if place.protocol not in S3:
        return place
    settings = place.storage_options.get("config_kwargs", {})
    return UPath(place, config_kwargs={**settings, "retries": _retries(FIRST_ATTEMPTS)})


def output_place(path: str | os.PathLike[str] | UPath) -> Place:
    """Give the place of an output; a local one has its links resolved.

    Raises
    ------
    OutputError
        Where nothing can be written to it, or its URL holds what is to stay secret.
    """
    text = str(path)
    if redacted(text) != text or ("://" in text and "?" in text):
        raise OutputError(
            f"the output {public(text)} has a login or a query in its URL, which others would "
            "see; give credentials by the environment or as storage options of a UPath"
        )
    if re.match(r"[a-z0-9]{2,}:/[^/]", text):
        raise OutputError(f"the output {text} has lost a slash; give a URL as text, or as a UPath")
    place = place_of(path)
    if isinstance(place, Path):
        require_writable(place)
        return place.resolve()
    if "::" in text:
        problem = "is a chain of file systems; name the place itself"
    elif place.protocol == "memory":
        problem = "is this process's own memory, which the workers, processes too, do not see"
    elif is_web(place):
        problem = "can be read, but not written to"
    elif not place.name or {"", ".", ".."} & set(place.path.strip("/").split("/")):
        problem = f"names no folder; expected {place.protocol}://BUCKET/NAME"
    else:
        return place
    raise OutputError(f"the output {place} {problem}")


def require_writable(path: Path) -> None:
    """Refuse a folder that this process may not write to, or make; and links that lead nowhere.

    A link may be to what is to be made, in a folder that is there.

    Raises
    ------
    OutputError
    """
    broken = [one for one in (path, *path.parents) if one.is_symlink() and not one.exists()]
    for link in broken:
        if link != path or not link.resolve().parent.exists():
            raise OutputError(
                f"{path} cannot be written: {link} is a link to {link.resolve()}, which is not "
                "there (a disk that is not mounted?); make that folder, or remove the link"
            )
    target = path.resolve()
    there = next(folder for folder in (target, *target.parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{path} cannot be a folder: {there} is a file; name another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path} cannot be written: you have no permission to write into {there}; name another "
            "output, or have it permitted"
        )


def is_local(place: Place) -> bool:
    """Whether a place is in this machine's file system, where there are links and locks."""
    return isinstance(place, Path)


def redacted(text: str) -> str:
    """Take out of a text what is secret in URLs: logins, and queries that may be signed.

    Examples
    --------
    >>> redacted("cannot read https://me:secret@host/a.tif?X-Amz-Signature=abc: gone")
    'cannot read https://...@host/a.tif?... gone'
    """
    return _QUERY.sub(r"\1?...", _LOGIN.sub(r"\1...@", text))


def written_command(arguments: Sequence[str]) -> str:
    """Write a command line as a shell reads it, without what may be secret in any of its URLs.

    Examples
    --------
    >>> written_command(["zarrmask", "run", "my slices", "--x=s3://a:b/c@host/d?key=e f#g"])
    "zarrmask run 'my slices' '--x=s3://...@host/d?...'"
    """
    return shlex.join(public(argument) if "://" in argument else argument for argument in arguments)


def public(url: str) -> str:
    """Take out whatever can be a login, a query or a fragment, where it is known to be one URL.

    Examples
    --------
    >>> public("https://me:it's@host/my scan/?token=secret")
    'https://...@host/my scan/?...'
    """
    scheme, rest = url.split("://", 1)
    path, *secret = re.split(r"[?#]", rest, maxsplit=1)
    if any("@" in part for part in secret):
        return f"{scheme}://..."  # nobody can tell where a login with such a sign ends
    *login, path = path.rsplit("@", 1)
    return f"{scheme}://{'...@' if login else ''}{path}{'?...' if secret else ''}"


def lacks_secrets(url: str) -> bool:
    """Whether something was taken out of a URL by `public`, without which it may not open.

    Examples
    --------
    >>> lacks_secrets("https://...@host/scan"), lacks_secrets("https://host/scan")
    (True, False)
    """
    return "://...@" in url or url.endswith("?...")


def printable(place: Place) -> str:
    """Name a place without its secrets."""
    # Elsewhere a name may hold what ends a login or begins a query on the web.
    return public(str(place)) if is_web(place) else redacted(str(place))


def is_web(place: Place) -> bool:
    """Whether a place is on a web server, which is read from alone."""
    return not isinstance(place, Path) and place.protocol in ("http", "https")


def zarr_store(place: Place) -> LocalStore | FsspecStore:
    """Give what zarr reads and writes at a place; to be opened with the mode that is wanted."""
    if isinstance(place, Path):
        return LocalStore(place)
    return FsspecStore.from_url(str(place), storage_options=dict(place.storage_options))


def names_in(folder: Place) -> set[str]:
    """Names of the files and folders in a folder; none where it does not exist."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if isinstance(folder, Path):
            return {path.name for path in folder.iterdir()}
        found = folder.fs.ls(folder.path, detail=False)
        return {path.rstrip("/").rpartition("/")[2] for path in found} - {""}
    return set()


def read_files(folder: Place, suffix: str) -> dict[str, bytes]:
    """Read all files in a folder whose names end in `suffix`, by name; at a URL many at once."""
    names = sorted(name for name in names_in(folder) if name.endswith(suffix))
    if isinstance(folder, Path):
        return {name: (folder / name).read_bytes() for name in names}
    contents = folder.fs.cat([(folder / name).path for name in names]) if names else {}
    return {path.rpartition("/")[2]: content for path, content in contents.items()}


def make_folder(place: Place) -> None:
    """Make a folder and those above it; at a URL folders come with their files."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def remove(place: Place) -> None:
    """Remove a file, a link or a folder with all in it, if it is there."""
    if not isinstance(place, Path):
        with suppress(FileNotFoundError):
            place.fs.rm(place.path, recursive=True)
    elif place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


@contextmanager
def reached(place: Place, to_be: str = "written") -> Iterator[None]:
    """Say plainly what keeps a place at a URL from being reached.

    Raises
    ------
    OutputError
        For what the store, or the way there, raises inside.
    """
    try:
        yield
    except Exception as error:
        if is_local(place) or not _comes_from_a_store(error):
            raise
        again = "; then run the same command again: it goes on" if to_be == "written" else ""
        raise OutputError(
            f"{printable(place)} cannot be {to_be}: {_reason(error)}{again}"
        ) from None


def _comes_from_a_store(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.filename is None  # a local file's error names it
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, NotImplementedError) or library in (
        "aiobotocore",
        "aiohttp",
        "azure",
        "botocore",
        "fsspec",
        "gcsfs",
        "google",
        "s3fs",
    )


def _reason(error: Exception) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = redacted(str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"it is not there ({said}); make the bucket first, or name another"
    if isinstance(error, PermissionError):
        return f"access is denied ({said}); check the credentials and what they allow"
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"}:
        return (
            f"there are no credentials ({said}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, also where the workers run"
        )
    if kinds & {"HTTPClientError", "ClientConnectionError", "ConnectionError", "TimeoutError"}:
        return f"the store does not answer ({said}); check AWS_ENDPOINT_URL and the network"
    if isinstance(error, NotImplementedError):
        return f"nothing can be written there ({said})"
    return said
