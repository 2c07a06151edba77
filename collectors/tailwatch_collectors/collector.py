"""The collector: what a training loop holds. Every call returns at once and none raises after `connect`.

The caller's thread copies the arrays as they are (`capture.py`) and puts them into the bounded outbox. Converting,
checking, encoding and sending happen in the sender's thread, writing to disk in the scribe's. Usable from several
threads; a forked child starts with an empty outbox, a spool of its own and its own threads on first use.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import math
import operator
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np

from tailwatch_collectors.arena import Arena
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.capture import Capture, capture, of_batch
from tailwatch_collectors.device import Devices
from tailwatch_collectors.encoding import Encoder
from tailwatch_collectors.errors import BatchError, ConfigurationError, FieldError
from tailwatch_collectors.gather import Gatherer
from tailwatch_collectors.guard import Guard, guarded, logger
from tailwatch_collectors.items import BatchItem, Item, NoteItem
from tailwatch_collectors.lint import check_semantics
from tailwatch_collectors.mode import Chooser, Mode
from tailwatch_collectors.outbox import Outbox
from tailwatch_collectors.overhead import Change, Meter
from tailwatch_collectors.scribe import Scribe
from tailwatch_collectors.sender import Sender
from tailwatch_collectors.session import find_session
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.sigterm import Watch
from tailwatch_collectors.spool import Spool
from tailwatch_collectors.stats import Counters, DropReason, Stats
from tailwatch_collectors.transport import HttpTransport
from tailwatch_collectors.types import BatchMeta, Phase

CLOSE_TIMEOUT = 5.0
"""Longest wait of `close`, also at exit, seconds."""

MAX_NOTE_BYTES = 2**20
"""Largest JSON of one call of `scalars` or `event`, bytes."""

OVERHEAD_METRIC = "collector_overhead"
"""Scalar in which rank 0 reports the share of the last window."""

_REMEMBERED = 8192
_FLUSH_INTERVAL = 0.005
_SENDING_SHARE = 0.7
"""Share of the time of `close` that goes to the network where the rest can go to disk."""
_ARENA_BYTES = 64 * 2**20

_PartKey = tuple[int, str, int, str]
_OpenKey = tuple[int, str, str]


class Collector:
    """Streams the log-probs of one process to the service. Made by `connect`."""

    def __init__(self, settings: Settings, *, session: str) -> None:
        self.session = session
        """Launch of the job that the batches belong to."""
        self._settings = settings
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        """Everything that belongs to one process: made at `connect`, and anew in a forked child."""
        settings = self._settings
        self._counters = Counters()
        self.guard = Guard(on_error=lambda: self._counters.add("errors"))
        self._outbox = Outbox(items=settings.queue_batches, nbytes=settings.queue_bytes, policy=settings.queue_policy)
        self._lock = threading.RLock()
        self._seq = itertools.count()
        self._parts: dict[_PartKey, Iterator[int]] = {}
        self._open_steps: dict[_OpenKey, BatchMeta] = {}
        self._arena = Arena(keep=min(_ARENA_BYTES, settings.queue_bytes))
        self._devices = Devices()
        self._gather = Gatherer() if settings.gather else None
        self._chooser = Chooser(settings.mode)
        self._meter = Meter(budget=settings.overhead_budget, now=time.monotonic())
        encode = Encoder(compression=settings.compression, inspect=self._inspect)
        run = settings.run_fields(self.session)
        self._spool: Spool | None = None
        self._scribe: Scribe | None = None
        if settings.spool_dir is not None:
            self._spool = Spool(
                settings.spool_dir,
                nbytes=settings.spool_bytes,
                fsync=settings.spool_fsync,
                run=run,
                url=settings.url,
            )
            self._scribe = Scribe(
                outbox=self._outbox,
                spool=self._spool,
                run=run,
                encode=encode,
                counters=self._counters,
                guard=self.guard,
                meter=self._meter,
            )
            # Without a URL the spool is all there is.
            self._outbox.spill_all = settings.url is None
        self._sender = Sender(
            settings=settings,
            session=self.session,
            outbox=self._outbox,
            spool=self._spool,
            encode=encode,
            transport=self._transport,
            counters=self._counters,
            guard=self.guard,
            meter=self._meter,
            chooser=self._chooser,
            stats=lambda: self.stats,
            tick=self._tick,
        )

    def _transport(self) -> HttpTransport:
        return HttpTransport(url=self._settings.url or "", api_key=self._settings.api_key)

    # --- what the trainer hands over -----------------------------------------------------------------------------

    def record(
        self,
        *,
        step: int,
        infer_logprobs: Any,
        train_logprobs: Any,
        mask: Any = None,
        train_version: int | None = None,
        infer_version: Any = None,
        part: int | None = None,
        final: bool = True,
        phase: Phase = "rollout",
        update_index: int = 0,
        stream: str = "train",
        cu_seqlens: Any = None,
        lengths: Any = None,
        padding: Literal["right", "left"] = "right",
        **columns: Any,
    ) -> None:
        """Copy one batch and hand it to the sender. Never raises, never waits for the network.

        Args:
            step: training step.
            infer_logprobs: [B, T] padded, [N] packed (with `cu_seqlens`) or a list of B sequences; torch (any
                device and precision) or numpy. The prompt is left out.
            train_logprobs: the same tokens under the training engine, same layout.
            mask: same layout; True where the token counts. None: all count.
            train_version: version of the weights behind `train_logprobs`. None: unknown.
            infer_version: version that sampled them: a scalar, [B], or per token in the same layout.
            part: number of this part. None: the n-th call for this step, phase, update and stream is part n.
            final: whether this is the last part of the step on this rank; else call `end_step` when it is over.
            phase: when the train log-probs were computed.
            update_index: optimiser step within the training step.
            stream: policy, adapter or eval stream within the run.
            cu_seqlens: [B+1] boundaries of packed arrays.
            lengths: [B] response lengths of padded arrays; default: up to the outermost True of `mask`, else T.
            padding: side on which padded arrays are padded.
            **columns: the other columns of the wire record: mask_post, token_ids, entropy, infer_entropy,
                sum_p2_other, advantage, reward, seq_id, prompt_id, source, turn, replica, text.
        """

        def build() -> Item | DropReason | None:
            # Before anything else that may fail: whether it is left out, the same for every layout.
            if self._meter.level != "full" and self._gather is None and self._meter.skips(_integer(step, "step")):
                return "overhead"
            if not self._settings.send_text:
                columns.pop("text", None)
            meta = self._meta(
                step=step,
                phase=phase,
                update_index=update_index,
                stream=stream,
                part=part,
                final=final,
                train_version=train_version,
            )
            taken = capture(
                meta,
                arena=self._arena,
                devices=self._devices,
                infer_logprobs=infer_logprobs,
                train_logprobs=train_logprobs,
                cu_seqlens=cu_seqlens,
                lengths=lengths,
                padding=padding,
                mask=mask,
                infer_version=infer_version,
                **columns,
            )
            self._remember(meta)
            if taken.sequences == 0 and not final:
                taken.release()
                return "empty"
            return self._item(taken)

        if self._gather is None:
            self._hand_over("record", build)
        else:
            self._record_gathered(self._gather, build)

    def _item(self, taken: Capture) -> BatchItem:
        """A captured batch on its way, in the form that the mode and the budget allow now."""
        form = self._chooser.form(
            taken.nbytes, now=time.monotonic(), fill=self._outbox.fill, away=self._sender.breaker.open
        )
        if self._meter.level != "full":
            form = "edge"
        return BatchItem(source=taken, form=form, seq=next(self._seq), nbytes=taken.nbytes)

    def _record_gathered(self, gather: Gatherer, build: Callable[[], Item | DropReason | None]) -> None:
        """Hand the batch to rank 0, which hands over everybody's. Waits for the other ranks, as was asked for."""
        began = time.perf_counter()
        own: Batch | None = None
        with self.guard("record"):
            try:
                item = build()
                own = item.source.batch() if isinstance(item, BatchItem) and item.source is not None else None
            except BatchError:
                self._counters.add("recorded")
                self._counters.drop("invalid")
                raise
            finally:
                # Whatever happened here: the others wait for this rank.
                found = gather(own)
                self._meter.blocked(time.perf_counter() - began)
                if found is None and own is not None:
                    found = [own]
                self._counters.add("gathered", int(own is not None and not found))
                for batch in found or ():
                    self._hand_over("record", functools.partial(self._regathered, batch))

    def _regathered(self, batch: Batch) -> Item | DropReason:
        if self._meter.skips(batch.meta.step):
            return "overhead"
        return self._item(of_batch(batch, give=self._arena.give))

    def end_step(self, step: int) -> None:
        """Say that this rank is through with a step that was recorded with `final=False`. Never raises.

        Does nothing for a step whose last part was already final.
        """
        with self.guard("end_step"):
            number = _integer(step, "step")
            with self._lock:
                open_metas = [meta for meta in list(self._open_steps.values()) if meta.step == number]
            for meta in open_metas:
                self._hand_over("end_step", functools.partial(self._final, meta))

    def _final(self, last: BatchMeta) -> Item:
        """A batch without rows that closes what `last` belongs to."""
        meta = self._meta(
            step=last.step,
            phase=last.phase,
            update_index=last.update_index,
            stream=last.stream,
            part=None,
            final=True,
            train_version=last.train_version,
        )
        none_N = np.empty(0, np.float32)
        batch = Batch(meta=meta, offsets_B1=np.zeros(1, np.int64), infer_logprobs_N=none_N, train_logprobs_N=none_N)
        self._remember(meta)
        return self._item(of_batch(batch, give=self._arena.give))

    def scalars(self, *, step: int, values: Mapping[str, Any]) -> None:
        """Hand over numbers the trainer computes anyway: reward, grad_norm, entropy, ... Never raises.

        Values are whatever `float()` takes. NaN and infinite ones are left out: a gap, not a number.
        """

        def build() -> Item | DropReason:
            numbers = {str(name): float(value) for name, value in values.items()}
            finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
            content = {"step": _integer(step, "step"), "session": self.session, "values": finite}
            return self._note("scalars", content) if finite else "empty"

        self._hand_over("scalars", build)

    def event(self, kind: str, *, step: int | None = None, payload: Mapping[str, Any] | None = None) -> None:
        """Hand over something that happened: weight_sync, resume, checkpoint, ... Never raises.

        Args:
            kind: what happened.
            step: when; None: not tied to a step.
            payload: details, as JSON takes them.
        """

        def build() -> Item:
            content: dict[str, Any] = {"kind": kind, "session": self.session, "payload": dict(payload or {})}
            if step is not None:
                content["step"] = _integer(step, "step")
            return self._note("events", content)

        self._hand_over("event", build)

    # --- what the trainer may read -------------------------------------------------------------------------------

    @property
    def directive(self) -> dict[str, Any] | None:
        """The last known directive of the control; None: none. Never waits."""
        return self._sender.news.directive

    @property
    def metrics(self) -> dict[str, float]:
        """Headline metrics of the last answered batch; those that do not exist for it are absent."""
        return dict(self._sender.news.metrics or {})

    @property
    def run_id(self) -> str | None:
        """The service's name for the run; None until it has answered once."""
        return self._sender.run_id

    @property
    def stats(self) -> Stats:
        """The counters now."""
        spool = self._spool
        stored: dict[str, int] = {}
        lost: dict[DropReason, int] = {}
        if spool is not None:
            stored = {
                "spooled": spool.pending,
                "spooled_bytes": spool.nbytes,
                "adopted_dropped": spool.adopted_dropped,
                "damaged": spool.damaged,
            }
            lost = {"spool_full": spool.full_dropped, "spool_damaged": spool.damage_dropped}
        return self._counters.snapshot(
            dropped=lost,
            queued=len(self._outbox),
            queued_bytes=self._outbox.nbytes,
            overhead=self._meter.total(time.monotonic()),
            level=self._meter.level,
            **stored,
        )

    def count_error(self) -> None:
        """Count an error of an adapter whose hook is called without a collector at hand. Never raises."""
        self._counters.add("errors")

    # --- the end -------------------------------------------------------------------------------------------------

    @guarded(default=False)
    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything handed over before has been settled; False where `timeout` seconds were too few.

        Settled is what the service has answered for, what was dropped, and what is in the spool.
        """
        deadline = time.monotonic() + timeout
        last = self._outbox.last()
        while last is not None and self._outbox.holds_up_to(last.seq):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_FLUSH_INTERVAL)
        # What has just gone is counted before this returns, so that `stats` say it.
        counted = self._sender.finishing.acquire(timeout=max(0.0, deadline - time.monotonic()))
        if counted:
            self._sender.finishing.release()
        return counted

    @guarded(default=None)
    def close(self, timeout: float = CLOSE_TIMEOUT, *, finished: bool = False) -> None:
        """Send what is left, for at most `timeout` seconds, and stop. Never raises; a second call does nothing.

        What cannot be sent in that time goes to the spool; what cannot go there either is dropped and counted.

        Args:
            timeout: longest wait, seconds.
            finished: tell the service that the run is over (rank 0 does). Leaving a `with` block without an
                exception does; closing at exit does not, for an exit may be a crash.
        """
        with self._lock:
            if self._closed:
                return
            if finished and self._settings.rank == 0:
                self.event("finished", step=self._sender.step)
            self._closed = True
        _OPEN.pop(id(self), None)
        began = time.monotonic()
        sending = timeout if self._scribe is None else _SENDING_SHARE * timeout
        self._sender.stop_by(began + sending)
        self._sender.join(sending)
        if self._scribe is not None and self._spool is not None:
            self._scribe.spill(began + timeout, end=True)
        self._counters.drop("closed", self._outbox.clear())
        if self._spool is not None:
            self._spool.close()
        self._say_what_became()

    def _say_what_became(self) -> None:
        stats = self.stats
        if stats.dropped or stats.rejected:
            logger.warning(
                "closed: %d of %d items stored, %d refused, %d in the spool, dropped: %s",
                stats.sent + stats.duplicates,
                stats.recorded,
                stats.rejected,
                stats.spooled,
                dict(stats.dropped),
            )
        elif stats.spooled:
            logger.warning(
                "closed: %d of %d items are in the spool %s; the next collector there sends them, or %s",
                stats.spooled,
                stats.recorded,
                self._settings.spool_dir,
                "`python -m tailwatch_collectors replay`",
            )

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=error is None)

    # --- inside --------------------------------------------------------------------------------------------------

    def _hand_over(self, place: str, build: Callable[[], Item | DropReason | None]) -> None:
        """Build an item and put it into the outbox; every way out of here is counted."""
        began = time.perf_counter()
        with self.guard(place):
            self._counters.add("recorded")
            if self._closed or (self._settings.url is None and self._scribe is None):
                self._counters.drop("closed" if self._closed else "no_url")
                return
            try:
                item = build()
            except BatchError:
                self._counters.drop("invalid")
                raise
            except BaseException:  # an interrupt too: it passes, and the item is accounted for
                self._counters.drop("error")
                raise
            if item is None or isinstance(item, str):
                self._counters.drop(item or "empty")
                return
            for reason, dropped in self._outbox.put(item):
                self._counters.drop(reason)
                which = "it" if dropped is item else "an older one"
                self.guard.once(place, reason, message=f"{place}: {which} was dropped: {reason}")
            self._start()
        self._meter.blocked(time.perf_counter() - began)

    def _start(self) -> None:
        if self._settings.url is not None:
            self._sender.start()
        if self._scribe is not None:
            self._scribe.start()

    def _note(self, path: str, content: Mapping[str, Any]) -> NoteItem:
        try:
            body = json.dumps(content, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise BatchError(FieldError(column=path, reason=f"cannot be written as JSON: {error}")) from error
        if len(body) > MAX_NOTE_BYTES:
            raise BatchError(FieldError(column=path, reason=f"{len(body)} bytes of JSON, limit {MAX_NOTE_BYTES}"))
        return NoteItem(path=path, body=body, key=uuid.uuid4().hex, seq=next(self._seq))

    # --- in the sender's thread ----------------------------------------------------------------------------------

    def _inspect(self, batch: Batch) -> None:
        """The first batch of a stream: what its columns and settings mean together, said once."""
        declared = {**self._settings.config, "framework": self._settings.framework}
        with self.guard("semantics"):
            for finding in check_semantics(batch, declared):
                self.guard.once("semantics", batch.meta.stream, finding.code, message=f"semantics: {finding.message}")
                payload = {"code": finding.code, "message": finding.message, "stream": batch.meta.stream}
                self.event("semantics", step=batch.meta.step, payload=payload)

    def _tick(self) -> None:
        """Look at what we cost; say so, and give something up, where it is too much."""
        before = self._meter.share
        change = self._meter.turn(time.monotonic())
        step = self._sender.step
        share = self._meter.share
        if share is not None and share != before and step is not None and self._settings.rank == 0:
            self.scalars(step=step, values={OVERHEAD_METRIC: share})
        if change is not None:
            self._say(change, step)

    def _say(self, change: Change, step: int | None) -> None:
        what = "over" if change.down else "well within"
        logger.warning(
            "overhead %.2f %% is %s the budget of %.2f %%: from %s to %s",
            100 * change.share,
            what,
            100 * self._meter.budget,
            change.before,
            change.now,
        )
        payload = {"before": change.before, "now": change.now, "share": change.share, "budget": self._meter.budget}
        kind = "collector_degraded" if change.down else "collector_recovered"
        self.event(kind, step=step, payload={**payload, "rank": self._settings.rank})

    def _meta(
        self,
        *,
        step: int,
        phase: Phase,
        update_index: int,
        stream: str,
        part: int | None,
        final: bool,
        train_version: int | None,
    ) -> BatchMeta:
        step = _integer(step, "step")
        update_index = _integer(update_index, "update_index")
        number = self._number((step, phase, update_index, stream), part)
        return BatchMeta(
            step=step,
            rank=self._settings.rank,
            world_size=self._settings.world_size,
            part=number,
            final=bool(final),
            phase=phase,
            update_index=update_index,
            stream=stream,
            session=self.session,
            train_version=None if train_version is None else _integer(train_version, "train_version"),
            framework=self._settings.framework,
            recorded_at=time.time(),
        )

    def _number(self, key: _PartKey, part: int | None) -> int:
        """The number of a part: the one given, else the next for its key."""
        with self._lock:
            # Each a single step for the interpreter, so that a signal handler that records gets another number.
            number = next(self._parts.setdefault(key, itertools.count()))
            if part is not None:
                given = _integer(part, "part")
                number, self._parts[key] = given, itertools.count(max(number, given + 1))
            _forget(self._parts)
        return number

    def _remember(self, meta: BatchMeta) -> None:
        """Keep which steps are still open, and the latest step for the heartbeat."""
        key = (meta.step, meta.phase, meta.stream)
        with self._lock:
            self._sender.step = max(meta.step, self._sender.step or 0)
            self._open_steps.pop(key, None)
            if not meta.final:
                self._open_steps[key] = meta
                _forget(self._open_steps)

    def _begin(self) -> None:
        _OPEN[id(self)] = self
        self._start()
        if self._settings.sigterm_timeout:
            _TERMINATION.install()

    def _forked(self) -> None:
        # Kept, never used: collecting it here would close connections that belong to the parent.
        self._inherited = (self._sender, getattr(self, "_inherited", None))
        if self._spool is not None:
            self._spool.abandon()
        self._reset()

    def _terminated(self, deadline: float) -> None:
        """SIGTERM: get what is in memory out of it, and go on."""
        if self._scribe is not None:
            self._scribe.spill(deadline)
        else:
            self.flush(max(deadline - time.monotonic(), 0.0))


def connect(
    *,
    project: str | None = None,
    run: str | None = None,
    url: str | None = None,
    api_key: str | None = None,
    session: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    framework: str | None = None,
    config: Mapping[str, Any] | None = None,
    queue_batches: int | None = None,
    queue_bytes: int | None = None,
    timeout: float | None = None,
    heartbeat: float | None = None,
    compression: Literal["zstd", "lz4", "none"] | None = None,
    send_text: bool | None = None,
    queue_policy: Literal["drop-oldest", "drop-newest", "sample"] | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_bytes: int | None = None,
    spool_fsync: Literal["interval", "always", "never"] | None = None,
    mode: Mode | None = None,
    overhead_budget: float | None = None,
    gather: Literal["none", "rank0"] | None = None,
    sigterm_timeout: float | None = None,
) -> Collector:
    """Start streaming to a service, which need not be up yet. Everything left out is read from `TAILWATCH_*`.

    Without a URL nothing is sent: everything goes to the spool, to be sent by `python -m tailwatch_collectors replay`
    or by a later collector that has a URL and the same `spool_dir`.

    Args:
        project: project the run belongs to.
        run: name of the run.
        url: root of the service, for example `http://127.0.0.1:8321`.
        api_key: bearer key.
        session: launch of the job, the same on all ranks; default: the launcher's id and restart count, else one
            shared through torch.distributed, else random.
        rank: data-parallel rank; default: RANK, else SLURM_PROCID, else 0.
        world_size: ranks that record each step; default: WORLD_SIZE, else SLURM_NTASKS, else unknown. Pass 1
            where only one of several processes records, else the service waits for the others.
        framework: for example `trl 1.16.0`.
        config: further fields of the run: model_class, precision, temperature, top_p, logprobs_mode,
            staleness_bound, tags.
        queue_batches: most items waiting to be sent; default 256.
        queue_bytes: most bytes waiting to be sent; default 256 MiB. One encoded batch comes on top.
        timeout: longest wait for one network operation, seconds; default 10.
        heartbeat: time between heartbeats, seconds; default 60.
        compression: compression inside the Arrow stream; default none.
        send_text: let the `text` column leave the trainer; default: it is left out.
        queue_policy: what goes when the queue is full and the spool does not keep up; default `drop-oldest`.
        spool_dir: directory for what cannot be sent, shared by all ranks and by later jobs; default
            `~/.cache/tailwatch/spool`; `off`: nothing is written to disk.
        spool_bytes: most bytes this process keeps there, beyond which the oldest go; default 1 GiB.
        spool_fsync: how soon what is there survives the machine: within a second (`interval`, the default),
            `always`, or when the system likes (`never`).
        mode: `tokens` (default), `edge` (summaries made here, with the worst tokens and a random sample), or `auto`
            (tokens as long as the network keeps up).
        overhead_budget: largest share of the wall time this may cost before it gives something up; default 0.005;
            0: no bound.
        gather: `rank0`: all ranks hand their batches to rank 0 in a collective, so every rank has to record the same
            number of times. Default: every rank sends its own.
        sigterm_timeout: longest delay of SIGTERM while memory goes to disk, seconds; default 2; 0: SIGTERM is left
            alone.

    Raises:
        ConfigurationError: a setting is missing or wrong. Nothing raises after this.
    """
    settings = Settings.read(
        os.environ,
        project=project,
        run=run,
        url=url,
        api_key=api_key,
        session=session,
        rank=rank,
        world_size=world_size,
        framework=framework,
        config=config,
        queue_batches=queue_batches,
        queue_bytes=queue_bytes,
        timeout=timeout,
        heartbeat=heartbeat,
        compression=compression,
        send_text=send_text,
        queue_policy=queue_policy,
        spool_dir=None if spool_dir is None else os.fspath(spool_dir),
        spool_bytes=spool_bytes,
        spool_fsync=spool_fsync,
        mode=mode,
        overhead_budget=overhead_budget,
        gather=gather,
        sigterm_timeout=sigterm_timeout,
    )
    found, shared = (settings.session, True) if settings.session else find_session(os.environ)
    if settings.url is None:
        where = f"everything goes to {settings.spool_dir}" if settings.spool_dir else "everything is dropped"
        logger.warning("no url: nothing is sent, %s; pass url=... to connect or set TAILWATCH_URL", where)
    elif not shared and (settings.world_size or 1) > 1:
        logger.warning(
            "each of the %d ranks drew a session of its own and will be an attempt of its own; "
            "set TAILWATCH_SESSION to one value per launch",
            settings.world_size,
        )
    collector = Collector(settings, session=found)
    try:
        collector._begin()  # the two halves of one module
    except OSError as error:
        _OPEN.pop(id(collector), None)
        raise ConfigurationError(f"the certificates for {settings.url} cannot be read: {error}") from error
    return collector


_OPEN: dict[int, Collector] = {}
"""Collectors that are not closed. Kept alive here, so that what was recorded is sent even if nobody holds them."""


def _close_all() -> None:
    """At exit: one deadline for all."""
    deadline = time.monotonic() + CLOSE_TIMEOUT
    collectors = list(_OPEN.values())
    for collector in collectors:
        collector._sender.stop_by(deadline)
    for collector in collectors:
        collector.close(max(deadline - time.monotonic(), 0.0))


def _on_sigterm() -> None:
    """One deadline for all; the collectors stay open, for a handler of the trainer may go on."""
    collectors = list(_OPEN.values())
    longest = max((collector._settings.sigterm_timeout for collector in collectors), default=0.0)
    deadline = time.monotonic() + longest
    for collector in collectors:
        with collector.guard("sigterm"):
            collector._terminated(deadline)


_TERMINATION = Watch(_on_sigterm)


def _after_fork() -> None:
    for collector in list(_OPEN.values()):
        collector._forked()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _integer(value: Any, name: str) -> int:
    """An int from whatever is one (numpy, a tensor of one); a bool and a float are not."""
    try:
        if isinstance(value, bool):
            raise TypeError  # a bool is an index to operator
        return operator.index(value)
    except TypeError:
        raise BatchError(FieldError(column=name, reason=f"{value!r:.80} is not an integer")) from None


def _forget(entries: dict[Any, Any]) -> None:
    """Drop the oldest half once there are more entries than are worth remembering."""
    if len(entries) > _REMEMBERED:
        for key in list(entries)[: _REMEMBERED // 2]:
            entries.pop(key, None)
