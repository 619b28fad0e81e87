"""Where history's objects are kept: a local folder, or an object store named by a URL (S3 and what speaks it, Google's, Azure's).

An object is written once, under a name of its own, and never changed. Invariants: an object appears whole or not at all, and is durable
when `put` returns (folder: temporary file, fsync, rename, fsync of the folder; store: one upload that is visible when it is complete, its
size checked afterwards); nothing waits longer than the deadlines below. Credentials come from the environment or from files, as the
store's own tools read them, never from the URL: URLs are logged.
Source: S3's consistency model, https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from shared.errors import ConfigError

CONNECT_TIMEOUT_S: Final = 3.0
REQUEST_TIMEOUT_S: Final = 20.0  # without a byte; a store that is slower counts as dead for this write, which is tried again
ATTEMPTS: Final = 2  # of one request: who writes tries again anyway, with longer pauses (history_queue.py)
SCHEMES: Final = ("s3", "gs", "abfs", "abfss")
S3_OPTIONS: Final = ("endpoint_override", "region", "scheme")
DAMAGED: Final = ".damaged"
_TMP: Final = ".tmp"


class Objects(Protocol):
    """One flat folder of objects. Everything raises OSError when the disk or the store refuses."""

    where: str  # for people
    remote: bool  # reading waits for a network

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of all objects."""
        ...

    def put(self, name: str, data: Any) -> None:
        """Store a pyarrow Buffer; durable when it returns. The same name again replaces."""
        ...

    def open(self, name: str) -> Any:
        """A pyarrow file for random access. FileNotFoundError when there is no such object."""
        ...

    def delete(self, name: str) -> None:
        """Nothing happens when it is gone already."""
        ...

    def set_aside(self, name: str) -> None:
        """Give it the ending DAMAGED: kept for whoever wants to look at it."""
        ...


class FolderObjects:
    """A local folder, made when it is missing. Leftovers of a killed write go when it is opened."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{_TMP}"):
            left.unlink()

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._folder.iterdir()}

    def put(self, name: str, data: Any) -> None:
        path = self._folder / name
        scratch = path.with_name(name + _TMP)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        self._sync()

    def open(self, name: str) -> Any:
        return pa.memory_map(str(self._folder / name))

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> None:
        (self._folder / name).replace(self._folder / (name + DAMAGED))
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StoreObjects:
    """Objects under a prefix of an object store, through pyarrow."""

    remote = True

    def __init__(self, store: Any, prefix: str, where: str) -> None:
        self.where = where
        self._store, self._prefix = store, prefix.rstrip("/")

    def sizes(self) -> dict[str, int]:
        found = self._store.get_file_info(pafs.FileSelector(self._prefix, allow_not_found=True))
        return {info.base_name: int(info.size) for info in found if info.type == pafs.FileType.File}

    def put(self, name: str, data: Any) -> None:
        path = f"{self._prefix}/{name}"
        with self._store.open_output_stream(path) as stream:
            stream.write(data)
        size = self._store.get_file_info(path).size
        if size != len(data):
            raise OSError(f"{path}: {len(data)} bytes were sent, the store holds {size}")

    def open(self, name: str) -> Any:
        return self._store.open_input_file(f"{self._prefix}/{name}")

    def delete(self, name: str) -> None:
        try:
            self._store.delete_file(f"{self._prefix}/{name}")
        except FileNotFoundError:
            return

    def set_aside(self, name: str) -> None:
        self._store.move(f"{self._prefix}/{name}", f"{self._prefix}/{name}{DAMAGED}")


class Root:
    """Where the tables of one history are: a folder of objects for each."""

    def __init__(self, place: Path | str) -> None:
        """A local folder, or a URL. Raises ConfigError for a URL that names no store."""
        self.where = str(place)
        self._place = place
        self._store: Any = None
        self._prefix = ""
        if isinstance(place, str):
            self._store, self._prefix = _store_of(place)

    def table(self, name: str) -> Objects:
        """The objects of one table. Raises OSError when the folder cannot be had."""
        if isinstance(self._place, Path):
            return FolderObjects(self._place / name)
        return StoreObjects(self._store, f"{self._prefix}/{name}", f"{self._place.partition('?')[0].rstrip('/')}/{name}")


def _store_of(url: str) -> tuple[Any, str]:
    """The store of a URL, and the path within it that history may fill."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"history_url = {url!r}: allowed are {', '.join(f'{scheme}://' for scheme in SCHEMES)}; empty = a local folder")
    if not parts.hostname:
        raise ConfigError(f"history_url = {url!r}: names no bucket")
    if parts.password is not None or (parts.scheme in {"s3", "gs"} and parts.username is not None):
        raise ConfigError("history_url: credentials belong in the environment or in a file, never in a URL")
    if parts.scheme != "s3":
        try:
            store, path = pafs.FileSystem.from_uri(url)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"history_url = {url!r}: {error}") from error
        return store, path
    options = dict(parse_qsl(parts.query))
    wrong = sorted(set(options) - set(S3_OPTIONS))
    if wrong:
        raise ConfigError(f"history_url: option {wrong[0]!r}: allowed are {', '.join(S3_OPTIONS)}")
    if options.get("scheme", "https") not in {"http", "https"}:
        raise ConfigError(f"history_url: scheme = {options['scheme']!r}: allowed are http and https")
    store = pafs.S3FileSystem(
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small object is one request instead of three
        **options,
    )
    return store, f"{parts.hostname}{parts.path}".rstrip("/")
