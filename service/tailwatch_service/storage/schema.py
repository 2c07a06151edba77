"""The tables. A change here needs a migration beside it; a test compares both.

Two shapes are special. Steps, batches and chunks hang on a row of `series` (run, stream, attempt, phase,
update_index) and not on its five columns, which keeps the large indexes narrow. `steps.pending` and `steps.sealed`
are what the closer and the sealer have left to do; partial indexes make both lists cheap however long a run is.
Times are Unix seconds.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite numbers rows by itself only for INTEGER."""

_Seconds: sa.Double[float] = sa.Double()


def _run(*, primary_key: bool = False) -> sa.Column[str]:
    reference = sa.ForeignKey("runs.run_id", ondelete="CASCADE")
    return sa.Column("run_id", sa.String(32), reference, nullable=False, primary_key=primary_key)


def _series(*, primary_key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey("series.series_id", ondelete="CASCADE")
    return sa.Column("series_id", _Serial, reference, nullable=False, primary_key=primary_key)


runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("project", sa.String(256), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("framework", sa.Text),
    sa.Column("model_class", sa.Text),
    sa.Column("precision", sa.Text),
    sa.Column("temperature", sa.Double),
    sa.Column("top_p", sa.Double),
    sa.Column("logprobs_mode", sa.Text),
    sa.Column("world_size", sa.BigInteger),
    sa.Column("staleness_bound", sa.BigInteger),
    sa.Column("tags", sa.JSON(none_as_null=True)),
    sa.Column("config", sa.JSON(none_as_null=True)),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("announced_state", sa.String(16), nullable=False),
    sa.Column("created_at", _Seconds, nullable=False),
    sa.Column("updated_at", _Seconds, nullable=False),
    sa.Column("last_seen_at", _Seconds, nullable=False),
    sa.Column("last_heartbeat_at", _Seconds),
    sa.Column("finished_at", _Seconds),
    sa.Column("archived_at", _Seconds),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("last_event_seq", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("project", "name"),
    sa.Index("ix_runs_created_at_run_id", "created_at", "run_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _run(primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("session", sa.String(256)),
    sa.Column("created_at", _Seconds, nullable=False),
    sa.UniqueConstraint("run_id", "session"),
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("series_id", _Serial, primary_key=True),
    _run(),
    sa.Column("stream", sa.String(256), nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.String(32), nullable=False),
    sa.Column("update_index", sa.BigInteger, nullable=False),
    sa.Column("first_step", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("run_id", "stream", "phase", "update_index", "attempt"),
)

series_ranks = sa.Table(
    "series_ranks",
    metadata,
    _series(primary_key=True),
    sa.Column("rank", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last_step", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("batch_id", sa.String(32), primary_key=True),
    _series(),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("rank", sa.BigInteger, nullable=False),
    sa.Column("part", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("final", sa.Boolean, nullable=False),
    sa.Column("world_size", sa.BigInteger),
    sa.Column("train_version", sa.BigInteger),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("sequences", sa.BigInteger, nullable=False),
    sa.Column("segment", sa.String(64)),
    sa.Column("recorded_at", _Seconds),
    sa.Column("received_at", _Seconds, nullable=False),
    sa.Column("merged", sa.Boolean, nullable=False),
    sa.UniqueConstraint("series_id", "step", "rank", "part"),
)

batch_summaries = sa.Table(
    "batch_summaries",
    metadata,
    sa.Column("batch_id", sa.String(32), sa.ForeignKey("batches.batch_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("summary", sa.LargeBinary, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    _run(primary_key=True),
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("batch_id", sa.String(32), sa.ForeignKey("batches.batch_id", ondelete="CASCADE"), nullable=False),
    sa.Index("ix_idempotency_keys_batch_id", "batch_id"),
    sqlite_with_rowid=False,
)

steps = sa.Table(
    "steps",
    metadata,
    _series(primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("sealed", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("batch_count", sa.BigInteger, nullable=False),
    sa.Column("merged_count", sa.BigInteger, nullable=False),
    sa.Column("coverage", sa.Double, nullable=False),
    sa.Column("expected_ranks", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("sequences", sa.BigInteger, nullable=False),
    sa.Column("first_at", _Seconds, nullable=False),
    sa.Column("last_at", _Seconds, nullable=False),
    sa.Column("closed_at", _Seconds),
    sa.Column("merged_at", _Seconds),
    sa.Column("summaries_kept", sa.Boolean, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("missing", sa.JSON, nullable=False),
)

_pending = steps.c.pending.is_(sa.true())
_unsealed = steps.c.sealed.is_(sa.false())
_kept = steps.c.summaries_kept.is_(sa.true())
sa.Index("ix_steps_pending", steps.c.series_id, steps.c.step, sqlite_where=_pending, postgresql_where=_pending)
sa.Index("ix_steps_unsealed", steps.c.series_id, steps.c.step, sqlite_where=_unsealed, postgresql_where=_unsealed)
sa.Index("ix_steps_summaries_kept", steps.c.merged_at, sqlite_where=_kept, postgresql_where=_kept)

step_summaries = sa.Table(
    "step_summaries",
    metadata,
    _series(primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("summary", sa.LargeBinary, nullable=False),
)

series_chunks = sa.Table(
    "series_chunks",
    metadata,
    _series(primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("chunk", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

scalars = sa.Table(
    "scalars",
    metadata,
    _run(primary_key=True),
    sa.Column("stream", sa.String(256), primary_key=True),
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Double),
    sqlite_with_rowid=False,
)

events = sa.Table(
    "events",
    metadata,
    _run(primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("at", _Seconds, nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("attempt", sa.BigInteger),
    sa.Column("payload", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

heartbeats = sa.Table(
    "heartbeats",
    metadata,
    _run(primary_key=True),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rank", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("at", _Seconds, nullable=False),
    sqlite_with_rowid=False,
)

findings = sa.Table(
    "findings",
    metadata,
    _series(primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rule", sa.String(64), primary_key=True),
    sa.Column("slice", sa.String(256), primary_key=True),
    sa.Column("transition", sa.String(16), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("metric", sa.String(128), nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("threshold", sa.Double),
    sa.Column("baseline", sa.Double),
    sa.Column("score", sa.Double),
    sa.Column("basis", sa.Text, nullable=False),
    sa.Column("hits", sa.BigInteger, nullable=False),
    sa.Column("window_steps", sa.BigInteger, nullable=False),
    sa.Column("revised", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)

judgements = sa.Table(
    "judgements",
    metadata,
    _run(primary_key=True),
    sa.Column("stream", sa.String(256), primary_key=True),
    sa.Column("phase", sa.String(32), nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("series_id", _Serial, nullable=False),
    sa.Column("last_step", sa.BigInteger, nullable=False),
    sa.Column("last_closed_at", _Seconds, nullable=False),
    sa.Column("state", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("alert_id", sa.String(32), primary_key=True),
    _run(),
    sa.Column("rule", sa.String(64), nullable=False),
    sa.Column("slice", sa.String(256), nullable=False),
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("finding", sa.JSON, nullable=False),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("started_at", _Seconds, nullable=False),
    sa.Column("started_step", sa.BigInteger),
    sa.Column("fired_at", _Seconds),
    sa.Column("fired_step", sa.BigInteger),
    sa.Column("acknowledged_at", _Seconds),
    sa.Column("acknowledged_by", sa.String(64)),
    sa.Column("silenced_until", _Seconds),
    sa.Column("note", sa.Text),
    sa.Column("notified", sa.Boolean, nullable=False),
    sa.Column("resolved_at", _Seconds),
    sa.Column("resolved_step", sa.BigInteger),
    sa.Column("resolved_reason", sa.String(32)),
    sa.Column("updated_at", _Seconds, nullable=False),
    sa.Index("ix_alerts_run_id_started_at", "run_id", "started_at"),
    sa.Index("ix_alerts_started_at", "started_at"),
)

_unresolved = alerts.c.resolved_at.is_(None)
sa.Index("ix_alerts_open", alerts.c.fingerprint, unique=True, sqlite_where=_unresolved, postgresql_where=_unresolved)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("number", _Serial, primary_key=True),
    sa.Column("delivery_id", sa.String(32), nullable=False, unique=True),
    sa.Column("alert_id", sa.String(32), sa.ForeignKey("alerts.alert_id", ondelete="CASCADE")),
    sa.Column("destination", sa.String(32), nullable=False),
    sa.Column("notice", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("next_at", _Seconds, nullable=False),
    sa.Column("created_at", _Seconds, nullable=False),
    sa.Column("done_at", _Seconds),
    sa.Column("last_error", sa.Text),
    sa.Index("ix_deliveries_alert_id", "alert_id"),
)

_undone = deliveries.c.done_at.is_(None)
sa.Index(
    "ix_deliveries_undone",
    deliveries.c.destination,
    deliveries.c.number,
    sqlite_where=_undone,
    postgresql_where=_undone,
)

rule_overrides = sa.Table(
    "rule_overrides",
    metadata,
    sa.Column("project", sa.String(256), primary_key=True),
    sa.Column("run", sa.String(32), primary_key=True),
    sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.run_id", ondelete="CASCADE")),
    sa.Column("changes", sa.JSON, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("updated_at", _Seconds, nullable=False),
    sqlite_with_rowid=False,
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("project", sa.String(256)),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", _Seconds, nullable=False),
    sa.Column("revoked_at", _Seconds),
)

web_sessions = sa.Table(
    "web_sessions",
    metadata,
    sa.Column("hash", sa.LargeBinary, primary_key=True),
    sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.key_id", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", _Seconds, nullable=False),
    sa.Column("expires_at", _Seconds, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("audit_id", _Serial, primary_key=True),
    sa.Column("at", _Seconds, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)
