from __future__ import annotations

import pytest
import sqlalchemy as sa

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import keys, schema
from tailwatch_service.storage.database import Database


def test_a_secret_is_shown_once_and_stored_as_a_hash(db: Database) -> None:
    assert not keys.any_active(db)
    key, secret = keys.create(db, name="ci", scopes=["write", "read"], now=1.0, project="math")
    assert secret.startswith(keys.PREFIX)
    assert len(secret) == len(keys.PREFIX) + 43  # 256 bits in base64
    assert keys.verify(db, secret) == key
    assert key.scopes == {"read", "write"}
    assert keys.verify(db, secret + "x") is None
    assert keys.listed(db) == [key]
    assert keys.any_active(db)
    with db.read() as connection:
        for table in (schema.api_keys, schema.audit):
            for row in connection.execute(sa.select(table)):
                assert secret not in str(row)


def test_a_revoked_key_opens_nothing(db: Database) -> None:
    key, secret = keys.create(db, name="ci", scopes=["read"], now=1.0)
    token = keys.open_session(db, key.key_id, now=2.0, life_s=100.0)
    keys.revoke(db, key.key_id, now=3.0)
    assert keys.verify(db, secret) is None
    assert keys.session(db, token, now=4.0) is None
    assert keys.listed(db)[0].revoked_at == 3.0
    assert not keys.any_active(db)
    with pytest.raises(NotFound, match=key.key_id):
        keys.revoke(db, key.key_id, now=5.0)


def test_sessions_end(db: Database) -> None:
    key, _ = keys.create(db, name="ci", scopes=["read"], now=1.0)
    token = keys.open_session(db, key.key_id, now=2.0, life_s=100.0)
    assert keys.session(db, token, now=101.9) == key
    assert keys.session(db, token, now=102.0) is None
    assert keys.session(db, "unknown", now=3.0) is None
    keys.close_session(db, token)
    assert keys.session(db, token, now=3.0) is None


def test_what_is_done_is_audited(db: Database) -> None:
    key, _ = keys.create(db, name="ci", scopes=["read"], now=1.0)
    keys.record(db, actor=key.key_id, action="run_deleted", subject="r1", now=2.0, detail={"name": "x"})
    keys.revoke(db, key.key_id, now=3.0)
    assert [entry.action for entry in keys.audited(db)] == ["key_revoked", "run_deleted", "key_created"]
    assert keys.audited(db, limit=2)[1].detail == {"name": "x"}
