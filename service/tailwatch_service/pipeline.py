"""The whole way of a batch: summarise, keep its tokens if they are kept, store, wake the closer.

Everything costly runs in the caller's thread and outside any lock; one writer commits. When `process` returns, the
batch is durable.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.errors import Unavailable
from tailwatch_service.known_runs import KnownRuns
from tailwatch_service.recent import RecentSummaries
from tailwatch_service.settings import Settings
from tailwatch_service.statistics import compute
from tailwatch_service.storage import batches, segments
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments
from tailwatch_service.storage.writer import Writer
from tailwatch_service.types import BatchKey, BatchKind, BatchOutcome, NewBatch, SeriesKey, StepKey

COMMIT_TIMEOUT_S = 60.0
"""Longest wait for the writer; a client that is told to come back finds a duplicate if it was stored after all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A batch summarised, its tokens kept where they are, and not yet stored."""

    batch: NewBatch
    metrics: Mapping[str, float]
    """Headline metrics of this batch alone."""

    def answer(self, outcome: BatchOutcome) -> Processed:
        """The answer, once the outcome is known."""
        batch = self.batch
        return Processed(outcome=outcome, tokens=batch.tokens, sequences=batch.sequences, metrics=self.metrics)


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
    """Processes batches. Thread-safe; keeps nothing that matters between calls."""

    def __init__(
        self,
        db: Database,
        writer: Writer,
        *,
        segments: Segments,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        wake: Callable[[SeriesKey], None] = lambda _series: None,
        recent: RecentSummaries | None = None,
        known: KnownRuns | None = None,
    ) -> None:
        """Make a pipeline.

        Args:
            db: the database.
            writer: commits batches.
            segments: where tokens are kept.
            settings: whether tokens are kept.
            clock: Unix seconds.
            wake: told the series of every stored batch: the closer's `wake`.
            recent: where the closer finds the summaries made here without reading them back.
            known: attempts of runs.
        """
        self._writer = writer
        self._segments = segments
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._recent = RecentSummaries() if recent is None else recent
        self._known = KnownRuns(db) if known is None else known

    def process(
        self,
        batch: Batch,
        *,
        run_id: str,
        body: bytes | memoryview | None = None,
        idempotency_key: str | None = None,
    ) -> Processed:
        """Take in a batch of tokens and wait until it is durable: `prepare`, then `submit`.

        Raises:
            NotFound, Unprocessable: as `prepare`.
            KeyConflict: the key is stored with other content.
            Unavailable: not stored, or not known to be stored yet; to be sent again.
        """
        prepared = self.prepare(batch, run_id=run_id, body=body, idempotency_key=idempotency_key)
        return self._wait(prepared)

    def prepare(
        self,
        batch: Batch,
        *,
        run_id: str,
        body: bytes | memoryview | None = None,
        idempotency_key: str | None = None,
    ) -> Prepared:
        """The costly part of taking in a batch: summarise it, and keep its tokens where they are kept.

        Args:
            batch: decoded and checked.
            run_id: the run.
            body: the Arrow stream it came as, kept verbatim; None: it came as JSON and is encoded where it is kept.
            idempotency_key: the request's Idempotency-Key.

        Raises:
            NotFound: no such run.
            Unprocessable: no such attempt.
        """
        summary = summaries.summarise(batch)
        digest = wire.content_digest(batch)
        key = self._key(batch.meta, run_id)
        segment = None
        if self._settings.keep_tokens == "all" and batch.sequences:
            segment = segments.name_of(batches.batch_id(key), digest)
            self._segments.write(segment, wire.encode(batch) if body is None else body)
        data = self._recent.to_bytes(summary)
        new = _new(key, batch.meta, "tokens", digest, data, segment, idempotency_key, batch.tokens, batch.sequences)
        return Prepared(batch=new, metrics=compute.headline(summary))

    def submit(self, prepared: Prepared) -> Future[BatchOutcome]:
        """Hand a prepared batch to the writer; the future's result is durable, and nobody need wait in a thread.

        Raises:
            Unavailable: the writer is closed, or its queue full.
        """
        future = self._writer.submit(prepared.batch)
        future.add_done_callback(lambda done: self._stored(prepared, done))
        return future

    def process_summary(
        self, data: bytes, *, meta: BatchMeta, run_id: str, idempotency_key: str | None = None
    ) -> Processed:
        """Take in a serialised summary (edge mode) in place of tokens: `prepare_summary`, then `submit`.

        Raises:
            SummaryError, NotFound, Unprocessable: as `prepare_summary`.
            KeyConflict, Unavailable: as `process`.
        """
        return self._wait(self.prepare_summary(data, meta=meta, run_id=run_id, idempotency_key=idempotency_key))

    def prepare_summary(
        self, data: bytes, *, meta: BatchMeta, run_id: str, idempotency_key: str | None = None
    ) -> Prepared:
        """Read and check a serialised summary.

        Args:
            data: the serialised summary.
            meta: what it is about.
            run_id: the run.
            idempotency_key: the request's Idempotency-Key.

        Raises:
            SummaryError: not a summary.
            NotFound, Unprocessable: as `prepare`.
        """
        summary = summaries.from_bytes(data)
        canonical = self._recent.to_bytes(summary)
        digest = hashlib.sha256(canonical).digest()
        key = self._key(meta, run_id)
        tokens, sequences = summary.tokens, summary.sequences
        new = _new(key, meta, "summary", digest, canonical, None, idempotency_key, tokens, sequences)
        return Prepared(batch=new, metrics=compute.headline(summary))

    def _key(self, meta: BatchMeta, run_id: str) -> BatchKey:
        now = self._clock()
        attempt = self._known.attempt_of(run_id, now=now, session=meta.session, attempt=meta.attempt)
        series = SeriesKey(run_id, meta.stream, attempt, meta.phase, meta.update_index)
        return BatchKey(StepKey(series, meta.step), meta.rank, meta.part)

    def _wait(self, prepared: Prepared) -> Processed:
        try:
            return prepared.answer(self.submit(prepared).result(COMMIT_TIMEOUT_S))
        except FutureTimeoutError as error:
            raise Unavailable(f"the batch was not stored within {COMMIT_TIMEOUT_S:g} s") from error

    def _stored(self, prepared: Prepared, done: Future[BatchOutcome]) -> None:
        if not done.cancelled() and done.exception() is None and done.result().status == "stored":
            self._wake(prepared.batch.key.step_key.series)


def _new(
    key: BatchKey,
    meta: BatchMeta,
    kind: BatchKind,
    digest: bytes,
    summary: bytes,
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
        summary=summary,
        segment=segment,
        recorded_at=meta.recorded_at,
        idempotency_key=idempotency_key,
    )
