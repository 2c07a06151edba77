"""Segments: received token batches, verbatim, one private file each, named `<batch>-<digest8>`.

A segment is on the disk before its row commits, so a row's segment always exists; what a crash leaves behind is a
segment without a row, which is swept after an hour. Two uploads of the same key with different content have different
names: the refused one cannot overwrite the acknowledged one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tailwatch_service.errors import NotFound

ORPHAN_AGE_S = 3600.0
"""Age at which a segment without a row is given up."""

_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")
_UNFINISHED = ".tmp"
_DOOMED = ".doomed"


def name_of(batch_id: str, digest: bytes) -> str:
    """File name of a batch's segment: its id and the first 8 bytes of its content's digest."""
    return f"{batch_id}-{digest[:8].hex()}"


class Segments:
    """One directory of segments, in 256 folders. Safe to use from any number of threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, body: bytes | memoryview) -> None:
        """Store a segment; it survives a power cut once this returns. The same name may be written again."""
        path = self._path(name)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync_directory(self.root.parent)
            _sync_directory(self.root)
        handle, unfinished = tempfile.mkstemp(prefix=f"{name}.", suffix=_UNFINISHED, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            Path(unfinished).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(unfinished).unlink()
            raise
        _sync_directory(path.parent)

    def read(self, name: str) -> bytes:
        """The bytes of a segment.

        Raises:
            NotFound: no such segment.
        """
        path = self._path(name)
        # The sweeper sets a segment aside before it looks for its row; it may stand there for a moment.
        for candidate in (path, path.with_name(name + _DOOMED), path):
            with contextlib.suppress(FileNotFoundError):
                return candidate.read_bytes()
        raise NotFound(f"no tokens are stored under {name}")

    def sweep(self, have_rows: Callable[[Collection[str]], Collection[str]], *, now: float) -> list[str]:
        """Remove segments older than an hour that have no row; their names.

        Args:
            have_rows: of these names, those that a row refers to.
            now: Unix seconds.
        """
        removed: list[str] = []
        for folder in sorted(self.root.glob("??")):
            old = list(_older_than(folder, now - ORPHAN_AGE_S))
            for path in old:
                if path.name.endswith(_UNFINISHED):
                    path.unlink(missing_ok=True)
            names = {_base_name(path) for path in old if not path.name.endswith(_UNFINISHED)}
            suspects = names - set(have_rows(names)) if names else set()
            aside = {path.name for path in old if path.name.endswith(_DOOMED)}
            suspects |= {_base_name(folder / doomed) for doomed in aside}
            removed += [name for name in sorted(suspects) if self._remove(name, have_rows, now=now)]
        return removed

    def _remove(self, name: str, have_rows: Callable[[Collection[str]], Collection[str]], *, now: float) -> bool:
        """Set the segment aside, look again, and only then delete: a retry may have written and committed it since."""
        path = self._path(name)
        doomed = path.with_name(name + _DOOMED)
        with contextlib.suppress(FileNotFoundError):
            path.replace(doomed)
        try:
            fresh = doomed.stat().st_mtime > now - ORPHAN_AGE_S
        except FileNotFoundError:
            return False
        if fresh or have_rows({name}):
            doomed.replace(path)
            return False
        doomed.unlink(missing_ok=True)
        return True

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise NotFound(f"{name!r:.80} is not the name of a segment")
        return self.root / name[:2] / name


def _older_than(folder: Path, moment: float) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < moment:
                    yield Path(entry.path)


def _base_name(path: Path) -> str:
    return path.name.removesuffix(_DOOMED)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
