"""The whole way of a batch: summarise, keep its tokens if they are kept, store, wake the closer.

Everything costly runs in the caller's thread and outside any lock; one writer commits. When `process` returns, the
batch is durable.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.errors import Unavailable
from tailwatch_service.settings import Settings
from tailwatch_service.statistics import compute
from tailwatch_service.storage import batches, runs, segments
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments
from tailwatch_service.storage.writer import Writer
from tailwatch_service.types import BatchKey, BatchKind, BatchOutcome, NewBatch, SeriesKey, StepKey

COMMIT_TIMEOUT_S = 60.0
"""Longest wait for the writer; a client that is told to come back finds a duplicate if it was stored after all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processed:
    """The answer to a batch."""

    outcome: BatchOutcome
    """Batch id and whether it was stored or a duplicate; durable."""
    tokens: int
    """Tokens in the batch, masked ones included."""
    sequences: int
    metrics: Mapping[str, float]
    """Headline metrics of this batch alone."""


class Pipeline:
    """Processes batches. Thread-safe; keeps nothing between calls."""

    def __init__(
        self,
        db: Database,
        writer: Writer,
        *,
        segments: Segments,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        wake: Callable[[SeriesKey], None] = lambda _series: None,
    ) -> None:
        """Make a pipeline.

        Args:
            db: the database.
            writer: commits batches.
            segments: where tokens are kept.
            settings: whether tokens are kept.
            clock: Unix seconds.
            wake: told the series of every stored batch: the closer's `wake`.
        """
        self._db = db
        self._writer = writer
        self._segments = segments
        self._settings = settings
        self._clock = clock
        self._wake = wake

    def process(
        self,
        batch: Batch,
        *,
        run_id: str,
        body: bytes | memoryview | None = None,
        idempotency_key: str | None = None,
    ) -> Processed:
        """Take in a batch of tokens.

        Args:
            batch: decoded and checked.
            run_id: the run.
            body: the Arrow stream it came as, kept verbatim; None: it came as JSON and is encoded where it is kept.
            idempotency_key: the request's Idempotency-Key.

        Raises:
            NotFound: no such run.
            Unprocessable: no such attempt.
            KeyConflict: the key is stored with other content.
            Unavailable: not stored, or not known to be stored yet; to be sent again.
        """
        summary = summaries.summarise(batch)
        digest = wire.content_digest(batch)
        key = self._key(batch.meta, run_id)
        segment = None
        if self._settings.keep_tokens == "all" and batch.sequences:
            segment = segments.name_of(batches.batch_id(key), digest)
            self._segments.write(segment, wire.encode(batch) if body is None else body)
        outcome = self._store(
            _new(key, batch.meta, "tokens", digest, summary, segment, idempotency_key, batch.tokens, batch.sequences)
        )
        return Processed(
            outcome=outcome, tokens=batch.tokens, sequences=batch.sequences, metrics=compute.headline(summary)
        )

    def process_summary(
        self, data: bytes, *, meta: BatchMeta, run_id: str, idempotency_key: str | None = None
    ) -> Processed:
        """Take in a serialised summary (edge mode) in place of tokens.

        Args:
            data: the serialised summary.
            meta: what it is about.
            run_id: the run.
            idempotency_key: the request's Idempotency-Key.

        Raises:
            SummaryError: not a summary.
            NotFound, Unprocessable, KeyConflict, Unavailable: as `process`.
        """
        summary = summaries.from_bytes(data)
        digest = hashlib.sha256(summaries.to_bytes(summary)).digest()
        key = self._key(meta, run_id)
        tokens, sequences = summary.tokens, summary.sequences
        outcome = self._store(_new(key, meta, "summary", digest, summary, None, idempotency_key, tokens, sequences))
        return Processed(outcome=outcome, tokens=tokens, sequences=sequences, metrics=compute.headline(summary))

    def _key(self, meta: BatchMeta, run_id: str) -> BatchKey:
        now = self._clock()
        attempt = runs.attempt_of(self._db, run_id, now=now, session=meta.session, attempt=meta.attempt)
        series = SeriesKey(run_id, meta.stream, attempt, meta.phase, meta.update_index)
        return BatchKey(StepKey(series, meta.step), meta.rank, meta.part)

    def _store(self, batch: NewBatch) -> BatchOutcome:
        try:
            outcome = self._writer.submit(batch).result(COMMIT_TIMEOUT_S)
        except FutureTimeoutError as error:
            raise Unavailable(f"the batch was not stored within {COMMIT_TIMEOUT_S:g} s") from error
        if outcome.status == "stored":
            self._wake(batch.key.step_key.series)
        return outcome


def _new(
    key: BatchKey,
    meta: BatchMeta,
    kind: BatchKind,
    digest: bytes,
    summary: summaries.Summary,
    segment: str | None,
    idempotency_key: str | None,
    tokens: int,
    sequences: int,
) -> NewBatch:
    return NewBatch(
        key=key,
        kind=kind,
        digest=digest,
        final=meta.final,
        world_size=meta.world_size,
        train_version=meta.train_version,
        tokens=tokens,
        sequences=sequences,
        summary=summaries.to_bytes(summary),
        segment=segment,
        recorded_at=meta.recorded_at,
        idempotency_key=idempotency_key,
    )
