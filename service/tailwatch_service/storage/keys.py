"""API keys, the pages' login sessions, and the audit log.

Only SHA-256 hashes are stored. Secrets are 256 random bits, so a plain hash cannot be searched, and looking one up
by its hash leaks nothing by timing.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database
from tailwatch_service.types import ApiKey, Scope

PREFIX = "tw_"
"""How every key starts, so that a leaked one is recognised by scanners."""

_keys = schema.api_keys
_sessions = schema.web_sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """Who did what."""

    at: float
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def create(
    db: Database, *, name: str, scopes: Iterable[Scope], now: float, project: str | None = None
) -> tuple[ApiKey, str]:
    """Make a key; its secret is in the answer and nowhere else."""
    secret = PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(
        key_id=secrets.token_hex(8),
        name=name,
        project=project,
        scopes=frozenset(scopes),
        created_at=now,
        revoked_at=None,
    )
    row = {**asdict(made), "scopes": sorted(made.scopes), "hash": _hash(secret)}
    with db.write() as connection:
        connection.execute(sa.insert(_keys).values(row))
        _audit(connection, actor="cli", action="key_created", subject=made.key_id, detail={"name": name}, now=now)
    return made, secret


def verify(db: Database, secret: str) -> ApiKey | None:
    """The key with that secret; None where there is none or it was revoked."""
    query = sa.select(_keys).where(_keys.c.hash == _hash(secret), _keys.c.revoked_at.is_(None))
    with db.read() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else _key(row._mapping)


def listed(db: Database) -> list[ApiKey]:
    """All keys, oldest first, revoked ones too."""
    with db.read() as connection:
        rows = connection.execute(sa.select(_keys).order_by(_keys.c.created_at, _keys.c.key_id)).all()
    return [_key(row._mapping) for row in rows]


def any_active(db: Database) -> bool:
    """True where at least one key is not revoked."""
    with db.read() as connection:
        query = sa.select(_keys.c.key_id).where(_keys.c.revoked_at.is_(None)).limit(1)
        return connection.execute(query).scalar() is not None


def revoke(db: Database, key_id: str, *, now: float) -> None:
    """Revoke a key and end the sessions opened with it.

    Raises:
        NotFound: no such key.
    """
    with db.write() as connection:
        where = sa.and_(_keys.c.key_id == key_id, _keys.c.revoked_at.is_(None))
        if connection.execute(sa.update(_keys).where(where).values(revoked_at=now)).rowcount == 0:
            raise NotFound(f"no active key {key_id!r:.80}")
        connection.execute(sa.delete(_sessions).where(_sessions.c.key_id == key_id))
        _audit(connection, actor="cli", action="key_revoked", subject=key_id, detail={}, now=now)


def open_session(db: Database, key_id: str, *, now: float, life_s: float) -> str:
    """Open a login session for a key; the answer is the cookie's value. Expired sessions are removed."""
    token = secrets.token_urlsafe(32)
    row = {"hash": _hash(token), "key_id": key_id, "created_at": now, "expires_at": now + life_s}
    with db.write() as connection:
        connection.execute(sa.delete(_sessions).where(_sessions.c.expires_at <= now))
        connection.execute(sa.insert(_sessions).values(row))
    return token


def session(db: Database, token: str, *, now: float) -> ApiKey | None:
    """The key behind a cookie; None where the session is unknown, over, or its key revoked."""
    live = sa.and_(_sessions.c.hash == _hash(token), _sessions.c.expires_at > now, _keys.c.revoked_at.is_(None))
    query = sa.select(_keys).join(_sessions, _sessions.c.key_id == _keys.c.key_id).where(live)
    with db.read() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else _key(row._mapping)


def close_session(db: Database, token: str) -> None:
    """End a session; one that is unknown is ended already."""
    with db.write() as connection:
        connection.execute(sa.delete(_sessions).where(_sessions.c.hash == _hash(token)))


def record(
    db: Database, *, actor: str, action: str, subject: str, now: float, detail: Mapping[str, Any] | None = None
) -> None:
    """Write one line of the audit log. `actor` is a key id, or `cli`."""
    with db.write() as connection:
        _audit(connection, actor=actor, action=action, subject=subject, detail=detail or {}, now=now)


def audited(db: Database, *, limit: int = 100) -> list[AuditEntry]:
    """The newest lines of the audit log, newest first."""
    table = schema.audit
    columns = (table.c.at, table.c.actor, table.c.action, table.c.subject, table.c.detail)
    with db.read() as connection:
        rows = connection.execute(sa.select(*columns).order_by(table.c.audit_id.desc()).limit(limit)).all()
    return [AuditEntry(**row._mapping) for row in rows]


def _audit(
    connection: sa.Connection, *, actor: str, action: str, subject: str, detail: Mapping[str, Any], now: float
) -> None:
    row = {"at": now, "actor": actor, "action": action, "subject": subject, "detail": dict(detail)}
    connection.execute(sa.insert(schema.audit).values(row))


def _key(row: Mapping[Any, Any]) -> ApiKey:
    values = {name: row[name] for name in ("key_id", "name", "project", "created_at", "revoked_at")}
    return ApiKey(scopes=frozenset(row["scopes"]), **values)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
