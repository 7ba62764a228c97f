"""Files at a URL: listed, described and read by ranges, with patience where the way fails."""

import asyncio
import errno
import io
import random
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from upath import UPath
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from zarrmask.errors import StackError, escaped
from zarrmask.stack.header import NotThereError
from zarrmask.storage.place import ATTEMPTS, is_web, printable, redacted

AT_ONCE = 16
"""Files that are asked for at once."""
BLOCK = 2**14
"""Bytes of a header that are asked for at a time: most headers are in the first so many."""
PAUSE = 0.5
"""Seconds before the second try; twice as many before each next one, up to `LONGEST`."""
LONGEST = 10.0
SILENCE = 60.0
"""Seconds that a server may say nothing."""
PASSING = {408, 425, 429, *range(500, 600)} - {501}
"""Statuses of HTTP that may be another at the next try."""

Result = TypeVar("Result")


class Stamp(NamedTuple):
    """What a server says of a file: its size, bytes, and what changes when its content does."""

    size: int | None
    state: str


class Remote:
    """A file, or a folder of files, at a URL; small when pickled: no connection goes along.

    Parameters
    ----------
    place : UPath
        Where it is, with the storage options of its file system.

    Attributes
    ----------
    shown : str
        The URL without its secrets.
    place : UPath
        The URL without a query, which is among the storage options instead: so it goes along with
        every request below the URL, too.
    """

    def __init__(self, place: UPath) -> None:
        self._is_web = is_web(place)
        self.shown = printable(place).rstrip("/")
        self.place = web_place(place) if self._is_web else place
        self._stamps: dict[str, Stamp] = {}

    def __repr__(self) -> str:
        return f"<Remote {self.shown}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stamps": {}}

    def entries(self) -> Iterator[tuple[str, str]]:
        """Go through the folder: an index page's links, or a bucket's keys, each with its kind.

        Yields
        ------
        (name, "file" or "folder")

        Raises
        ------
        StackError
            If it cannot be listed.
        """
        root = self._path("")
        for entry in self._ask("", lambda: self.place.fs.ls(root, detail=True)):
            folder, _, name = entry["name"].rstrip("/").rpartition("/")
            folder = folder.removesuffix("/.") if self._is_web else folder  # as Caddy writes links
            if folder != root or not name or (self._is_web and set(name) & set("?#")):
                continue  # a page links to more than what lies below it
            name = unquote(name) if self._is_web else name
            if entry.get("size") is not None:
                self._stamps[name] = stamp_of(entry)
            yield name, "folder" if entry["type"] == "directory" else "file"

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name that may be read."""
        try:
            self.stamp(name)
        except NotThereError:
            return False
        return True

    def stamp(self, name: str) -> Stamp:
        """Give a file's size and state as they were when first asked for."""
        if name not in self._stamps:
            path = self._path(name)
            self._stamps[name] = stamp_of(self._ask(name, lambda: self.place.fs.info(path)))
        return self._stamps[name]

    def stamps(self, names: Collection[str]) -> list[Stamp]:
        """Give many files' sizes and states; see `stamp`."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.stamp, names))

    def forget(self) -> None:
        """Ask anew for sizes and states."""
        self._stamps = {}

    def fetch(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Get bytes of a file; fewer where it ends before `stop`.

        Raises
        ------
        StackError
            If it cannot be read, however often that is tried, or only as a whole.
        """
        path = self._path(name)
        part = {} if (start, stop) == (0, None) else {"start": start, "end": stop}

        def request() -> bytes:
            try:
                content: bytes = self.place.fs.cat_file(path, **part)
            except Exception as error:
                if part and begins_past_end(error):
                    return b""
                raise
            return content

        content = self._ask(name, request)
        if stop is not None and len(content) > stop - start:
            raise whole_files(self.url(name))
        return content

    def file(self, name: str) -> "RangeFile":
        """Give a file as an open one."""
        return RangeFile(self, name)

    def url(self, name: str) -> str:
        """Where a file is, without secrets."""
        if not name:
            return self.shown
        folder, mark, query = self.shown.partition("?")
        return f"{folder.rstrip('/')}/{name}{mark}{query}"

    def _path(self, name: str) -> str:
        root = self.place.path.rstrip("/")
        return f"{root}/{quote(name) if self._is_web else name}" if name else root

    def _ask(self, name: str, request: Callable[[], Result]) -> Result:
        tries = 1
        while True:
            try:
                return request()
            except Exception as error:
                time.sleep(pause_after(error, tries, self.url(name)))
            tries += 1


class RangeFile(io.RawIOBase):
    """A file at a URL as an open one: what is read is asked for by ranges.

    Small reads ask for `BLOCK` bytes at a time, and what came is kept.
    """

    def __init__(self, remote: Remote, name: str) -> None:
        self.name = remote.url(name)
        self._remote, self._key = remote, name
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins, bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Say where the next read begins."""
        origins = {io.SEEK_SET: lambda: 0, io.SEEK_CUR: self.tell, io.SEEK_END: lambda: self.size}
        self._at = offset + origins[whence]()
        return self._at

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        size = self._remote.stamp(self._key).size
        if size is None:
            raise StackError(f"{self.name}: the server does not say how large it is")
        return size

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or all that are left."""
        if size is None or size < 0:
            if self._at:
                return self.read(self.size - self._at)
            content = self._remote.fetch(self._key)
        elif size >= BLOCK:
            content = self.read_range(self._at, self._at + size)
        else:
            first, last = self._at // BLOCK, (self._at + size - 1) // BLOCK
            blocks = b"".join(self._block(number) for number in range(first, last + 1))
            content = blocks[self._at - first * BLOCK :][:size]
        self._at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as fit."""
        content = self.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)

    def read_range(self, start: int, stop: int) -> bytes:
        """Read some bytes, wherever the next read begins."""
        return self._remote.fetch(self._key, start, stop)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK
            self._blocks[number] = self.read_range(start, start + BLOCK)
        return self._blocks[number]


Stream = io.BufferedReader | RangeFile
File = str | RangeFile
"""A file of this machine by its path, or one at a URL."""


def opened(file: File) -> Stream:
    """Open a file for reading."""
    # A plain string: names need not be valid text.
    return open(file, "rb") if isinstance(file, str) else file  # noqa: PTH123


def shown(place: str | Remote) -> str:
    """Name a path or URL for a person, without secrets."""
    return escaped(place) if isinstance(place, str) else place.shown


class PatientStore(WrapperStore[Any]):
    """A zarr store whose reads are tried again where the way to it fails."""

    def __str__(self) -> str:
        return redacted(str(self._store))

    def __repr__(self) -> str:
        return f"<PatientStore {self}>"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a value or a part of it, None where there is none."""
        found = await self._ask(key, lambda: self._store.get(key, prototype, byte_range))
        return _as_long(found, byte_range, key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of several values."""
        ranges = list(key_ranges)
        first = ranges[0][0] if ranges else ""
        found = await self._ask(
            first, lambda: self._store.get_partial_values(prototype=prototype, key_ranges=ranges)
        )
        return [_as_long(one, part, key) for one, (key, part) in zip(found, ranges, strict=True)]

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **limits: int | None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read parts of one value, as zarr 3.3 and later ask for those of a shard: by `get`."""
        by_get: Any = vars(Store)["get_ranges"]
        stated = {name: limit for name, limit in limits.items() if limit is not None}
        try:
            async for some in by_get(self, key, byte_ranges, prototype=prototype, **stated):
                yield some
        except BaseExceptionGroup as errors:  # of reads at once; what is missing zarr looks for
            told: BaseException | None = errors.subgroup(StackError)
            if told is None:
                raise
            while isinstance(told, BaseExceptionGroup):
                told = told.exceptions[0]
            raise told from None

    async def _ask(self, key: str, request: Callable[[], Awaitable[Result]]) -> Result:
        tries = 1
        while True:
            try:
                return await request()
            except Exception as error:
                await asyncio.sleep(pause_after(error, tries, key))
            tries += 1


def _as_long(found: Buffer | None, asked: ByteRequest | None, key: str) -> Buffer | None:
    """Give what was found, if it is no more than was asked for."""
    most = None
    if isinstance(asked, RangeByteRequest):
        most = asked.end - asked.start
    elif isinstance(asked, SuffixByteRequest):
        most = asked.suffix
    if found is not None and most is not None and len(found) > most:
        raise whole_files(key)
    return found


def whole_files(name: str) -> StackError:
    """What to say where a server gives more than is asked for."""
    return StackError(
        f"{name}: the server gives whole files only; expected one that answers range requests, as "
        "nginx, Apache, Caddy and buckets do"
    )


def web_place(place: UPath) -> UPath:
    """Give a place at HTTP whose file system sends the URL's query with every request."""
    import aiohttp

    url = urlsplit(str(place))
    options = dict(place.storage_options)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
    options["client_kwargs"] = {
        "timeout": timeout,
        "trust_env": True,  # proxies, and logins in ~/.netrc
        **options.get("client_kwargs", {}),
    }
    if url.query:
        given = options.get("params", {})
        options["params"] = {**given, **dict(parse_qsl(url.query, keep_blank_values=True))}
    plain: UPath = UPath(urlunsplit(url._replace(query="", fragment="")), **options)
    return plain


def stamp_of(entry: dict[str, Any]) -> Stamp:
    """Pick a file's size and state from what its file system says of it."""
    kinds = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime")
    state = [f"{kind}={entry[kind]}" for kind in kinds if entry.get(kind) is not None]
    return Stamp(entry.get("size"), "; ".join(state))


def pause_after(error: Exception, tries: int, url: str) -> float:
    """Say how long to wait before the next try.

    Parameters
    ----------
    error : Exception
        What the try before ended with.
    tries : int
        Made so far.
    url : str
        What was asked for, without secrets.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    StackError
        If the next try would end like this one, or if it was tried often enough.
    """
    if isinstance(error, StackError | MemoryError):
        raise error
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says so whatever happened
    if not passes(error):
        denied = isinstance(error, FileNotFoundError | PermissionError)
        kind = NotThereError if denied or status_of(error) in (403, 404) else StackError
        raise kind(f"{url}: {reason(error)}") from None
    if tries >= ATTEMPTS:
        raise StackError(f"{url}: {reason(error)}; tried {tries} times") from None
    told = str((getattr(error, "headers", None) or {}).get("Retry-After"))
    least = min(int(told), LONGEST) if told.isdecimal() else 0.0
    pause = min(PAUSE * 2.0 ** (tries - 1), LONGEST)
    return max(pause * random.uniform(0.5, 1.5), least)  # noqa: S311  many ask at once


def begins_past_end(error: Exception) -> bool:
    """Tell whether a range was refused since the file is shorter."""
    refused = isinstance(error, OSError) and error.errno == errno.EINVAL
    return (refused and "range" in str(error)) or status_of(error) == 416


def status_of(error: Exception) -> int | None:
    """Give the status of HTTP that an error tells of, if any."""
    status = getattr(error, "status", None)
    return int(status) if isinstance(status, int) else None


def passes(error: Exception) -> bool:
    """Tell whether an error may be gone at the next try."""
    if status := status_of(error):
        return status in PASSING
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EIO, errno.EREMOTEIO):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ClientConnectionError", "ClientPayloadError", "HTTPClientError"})


def reason(error: Exception) -> str:
    """Say for a person, without secrets, what an error means."""
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "is not there"
    if status:
        known = status in {s.value for s in HTTPStatus}
        name = f" ({HTTPStatus(status).phrase})" if known else ""
        hint = "; give the login in the URL or in ~/.netrc" if status == 401 else ""
        return f"the server answers {status}{name}{hint}"
    if isinstance(error, TimeoutError):
        return f"no answer within {SILENCE:g} s"
    said = redacted(str(error)) or type(error).__name__
    return f"access is denied ({said})" if isinstance(error, PermissionError) else said
