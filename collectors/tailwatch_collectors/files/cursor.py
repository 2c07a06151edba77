"""The cursor: which units have been acknowledged, in a file that is replaced whole.

Losing it costs nothing but time: batches are cut from a file by its content alone, so what is sent again carries the
same keys and the service answers `duplicate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tailwatch_collectors.errors import ConfigurationError

VERSION = 1

_EDGE = 2**16

Change = Literal["none", "grown", "rewritten"]


@dataclass(frozen=True, slots=True)
class Print:
    """What a file looked like: enough to see that it grew, or is another one."""

    size: int
    mtime_ns: int
    head: str
    """Digest of its first 64 KiB."""
    tail: str
    """Digest of its last 64 KiB."""

    @classmethod
    def of(cls, path: Path) -> Print:
        """The print of a file now.

        Raises:
            OSError: it cannot be read.
        """
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, *_edges(path, stat.st_size))

    def change(self, path: Path) -> Change:
        """What has become of the file since; a file that is gone has not changed."""
        try:
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (self.size, self.mtime_ns):
                return "none"
            if stat.st_size < self.size or _edges(path, self.size) != (self.head, self.tail):
                return "rewritten"
        except OSError:
            return "none"
        return "none" if stat.st_size == self.size else "grown"


@dataclass(slots=True)
class Entry:
    """How far one unit is."""

    files: dict[str, Print]
    """Its files, by name below the root, as they were when reading began."""
    session: str
    """Session its batches were sent in."""
    parts: int = 0
    """Batches acknowledged."""
    rows: int = 0
    """Sequences in them."""
    done: bool = False
    """Whether the last one is among them."""


@dataclass(slots=True)
class Cursor:
    """Entries by step, and the session in force."""

    path: Path | None
    """Where it is kept; None: nowhere."""
    session: str
    """Session of the units to come."""
    generation: int = 0
    """Times a unit was written anew after it was sent: launches of the trainer after the first."""
    units: dict[int, Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None, *, session: str, source: str) -> tuple[Cursor, str | None]:
        """The cursor kept at `path`, else a new one; and why an existing one was not used.

        Args:
            path: its file; None: it is not kept.
            session: session of a new one.
            source: what is read and where it goes; a cursor of something else is refused.

        Raises:
            ConfigurationError: it belongs to something else.
        """
        if path is None or not path.exists():
            return cls(path=path, session=session), None
        try:
            content = json.loads(path.read_text())
            if content["version"] != VERSION:
                return cls(path=path, session=session), f"{path} is of version {content['version']!r:.20}"
            kept = content["source"]
            loaded = cls(path=path, session=content["session"], generation=content["generation"])
            loaded.units = {int(step): _entry(entry) for step, entry in content["units"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return cls(path=path, session=session), f"{path} cannot be read ({type(error).__name__}: {error!s:.120})"
        if kept != source:
            raise ConfigurationError(f"{path} belongs to {kept!s:.200}, not to {source}; pass another --cursor")
        return loaded, None

    def rewind(self) -> None:
        """Begin again with the first file; sessions are kept, so that what was sent becomes a duplicate."""
        for entry in self.units.values():
            entry.parts, entry.rows, entry.done = 0, 0, False

    def save(self, *, source: str) -> None:
        """Replace the file by what is known now, durably.

        Raises:
            OSError: the directory cannot be written.
        """
        if self.path is None:
            return
        content = {
            "version": VERSION,
            "source": source,
            "session": self.session,
            "generation": self.generation,
            "units": {str(step): asdict(entry) for step, entry in self.units.items()},
        }
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def _entry(content: Mapping[str, Any]) -> Entry:
    files = {name: Print(**one) for name, one in content["files"].items()}
    return Entry(files=files, **{key: content[key] for key in ("session", "parts", "rows", "done")})


def _edges(path: Path, size: int) -> tuple[str, str]:
    """Digests of the first and the last 64 KiB of the first `size` bytes."""
    with path.open("rb") as file:
        head = file.read(min(size, _EDGE))
        file.seek(max(0, size - _EDGE))
        tail = file.read(min(size, _EDGE))
    return hashlib.sha256(head).hexdigest()[:16], hashlib.sha256(tail).hexdigest()[:16]
