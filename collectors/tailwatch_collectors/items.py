"""Items: what the trainer hands over, on its way to the service.

A batch is converted, checked and encoded (or summarised) once, by whichever background thread needs it first; from
then on only the bytes are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlencode

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch

Form = Literal["tokens", "edge"]
"""How a batch travels, settled when it is recorded: every token, or their summary."""


class Postable(Protocol):
    """What `Post` and a record of the spool have in common."""

    @property
    def route(self) -> str:
        """As `Post.route`."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """As `Post.key`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """What is posted, and what makes it idempotent."""

    route: str
    """Path below the run: batches, summaries, scalars or events."""
    key: Mapping[str, Any]
    """The batch's key, or `idempotency_key`; for summaries all of the metadata."""
    body: bytes


def request_of(post: Postable) -> tuple[str, dict[str, str]]:
    """Path below the run, and headers, of the request that carries it."""
    if post.route == "batches":
        return post.route, {"Content-Type": wire.CONTENT_TYPE}
    if post.route == "summaries":
        query = {name: _text(value) for name, value in post.key.items()}
        return f"{post.route}?{urlencode(query)}", {"Content-Type": "application/octet-stream"}
    key = str(post.key.get("idempotency_key", ""))
    return post.route, {"Content-Type": "application/json", "Idempotency-Key": key}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Source(Protocol):
    """What a batch is made of later (`capture.Capture`)."""

    @property
    def nbytes(self) -> int:
        """Size in memory, bytes."""
        ...

    def batch(self) -> Batch:
        """The checked batch."""
        ...

    def release(self) -> None:
        """The copies are no longer needed."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class BatchItem:
    """A batch on its way."""

    source: Source | None
    """Copies of what was recorded; None once they are encoded."""
    form: Form
    seq: int
    """Number within this process: the order of recording."""
    nbytes: int
    """Size in memory, bytes."""
    claimed: bool = False
    """Whether it is under way."""
    tries: int = 0
    """Times it was sent without a readable answer."""
    recreated: bool = False
    """Whether its run was created anew for it."""
    _post: Post | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, encode: Callable[[Batch, Form], Post]) -> Post:
        """What is posted for it: encoded once, so that what is sent again is the same bytes.

        Raises:
            BatchError: the arrays form no batch.
        """
        with self._lock:
            if self._post is not None:
                return self._post
            source = self.source
            if source is None:
                raise RuntimeError("an item with neither source nor post")
            self._post = encode(source.batch(), self.form)
            self.source, self.nbytes = None, len(self._post.body)
            source.release()
            return self._post


@dataclass(kw_only=True, slots=True, eq=False)
class NoteItem:
    """Scalars or an event on their way."""

    path: str
    """Path under the run: `scalars` or `events`."""
    body: bytes
    """JSON."""
    key: str
    """Idempotency key: the same however often it is sent."""
    seq: int = 0
    """Number within this process: the order of recording."""
    claimed: bool = False
    """Whether it is under way."""
    tries: int = 0
    """Times it was sent without a readable answer."""
    recreated: bool = False
    """Whether its run was created anew for it."""

    @property
    def nbytes(self) -> int:
        """Size in memory, bytes."""
        return len(self.body)

    def post(self, encode: object) -> Post:  # noqa: ARG002  # as BatchItem.post
        """What is posted for it."""
        return Post(route=self.path, key={"idempotency_key": self.key}, body=self.body)


Item = BatchItem | NoteItem
