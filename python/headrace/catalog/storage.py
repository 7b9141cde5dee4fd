"""List and read files of a table by path or URL, without Spark: local paths directly, others by fsspec."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlparse

from headrace.errors import UserError


class Store(Protocol):
    """What replaying a log needs of a file system. Paths are absolute, as `locate` returns them."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> bytes of the files in a folder; empty where there is none."""

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""

    def open(self, path: str) -> BinaryIO:
        """A seekable stream. Raises FileNotFoundError."""

    def open_for_pieces(self, path: str) -> BinaryIO:
        """The same for who knows what to read: nothing is fetched ahead. Raises FileNotFoundError."""

    def create(self, path: str) -> BinaryIO:
        """A stream into a new file, whose folder is made if its own parent is there."""

    def replace(self, path: str, data: bytes) -> None:
        """Write a whole small file, or leave what was there."""


class LocalStore:
    """Plain files."""

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            with os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}
        except NotADirectoryError as error:
            raise UserError(f"{folder}: not a folder") from error

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        return Path(path).open("rb")

    def open_for_pieces(self, path: str) -> BinaryIO:
        return self.open(path)

    def create(self, path: str) -> BinaryIO:
        Path(path).parent.mkdir(exist_ok=True)
        return Path(path).open("xb")

    def replace(self, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class RemoteStore:
    """Whatever fsspec knows: s3, gs, abfs, webhdfs, memory."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs: Any = fsspec.core.url_to_fs(url)[0]
        except (ImportError, ValueError) as error:
            scheme = url.split(":", 1)[0]
            raise UserError(
                f"{url}: {error}", f"install the fsspec driver for {scheme}:, or read with Spark"
            ) from error

    def sizes(self, folder: str) -> dict[str, int]:
        self._fs.invalidate_cache(folder)
        try:
            found = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {str(info["name"]).rsplit("/", 1)[-1]: int(info["size"]) for info in found if info["type"] == "file"}

    def read(self, path: str) -> bytes:
        return cast(bytes, self._fs.cat_file(path))

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(path, "rb"))

    def open_for_pieces(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(path, "rb", cache_type="none"))

    def create(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(path, "wb"))

    def replace(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)


def local_path(path: str) -> str | None:
    """The local path of a path or `file:` URL; None where it is elsewhere."""
    if path.startswith("file:"):
        rest = path[len("file:") :]
        return "/" + rest.lstrip("/") if rest.startswith("/") else rest
    return None if "://" in path else path


def locate(path: str) -> tuple[Store, str]:
    """The store of a table and the table's absolute place in it."""
    local = local_path(path)
    if local is not None:
        return LocalStore(), os.path.abspath(local)
    return RemoteStore(path), path.rstrip("/")


def decode(table: str, logged: str) -> str:
    """A path as a Delta log has it (URL-encoded, relative to the table or absolute) as a plain absolute path."""
    if logged.startswith("/"):
        return unquote(logged)
    if urlparse(logged).scheme and ":" in logged.split("/", 1)[0]:
        local = local_path(logged)
        return unquote(local if local is not None else logged)
    return f"{table}/{unquote(logged)}"
