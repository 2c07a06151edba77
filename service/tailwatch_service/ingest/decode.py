"""Decode: a request body to a checked batch. CPU work, done in the ingest threads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch, check_meta
from tailwatch_collectors.types import BatchMeta
from tailwatch_service import body as bodies
from tailwatch_service.errors import Unprocessable
from tailwatch_service.settings import Limits

JSON = "application/json"
"""Media type of a wire record as JSON."""

BATCH_TYPES = (wire.CONTENT_TYPE, JSON)
"""Media types of a batch."""

SUMMARY_TYPES = ("application/octet-stream",)
"""Media types of a serialised summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """A batch as it came in."""

    batch: Batch
    body: bytes | None
    """The Arrow stream, to be kept verbatim; None where it has to be encoded anew."""
    ignored_columns: tuple[str, ...]
    """Columns that were left out."""


def batch(body: bytes, *, media_type: str, encoding: str, limits: Limits, accept_text: bool) -> Incoming:
    """A batch from its body.

    Raises:
        TooLarge, BadRequest: as `body.decompress`; or the JSON does not parse.
        WireError: it is no wire record; names row, column and reason.
    """
    limit = limits.json_bytes if media_type == JSON else limits.decoded_bytes
    plain = bodies.decompress(body, encoding=encoding, limit=limit)
    if media_type == JSON:
        decoded, kept = wire.decode_json(bodies.parse_json(plain), limits=limits.wire()), None
    else:
        decoded, kept = wire.decode(plain, limits=limits.wire()), plain
    if decoded.batch.text is None or accept_text:
        return Incoming(batch=decoded.batch, body=kept, ignored_columns=decoded.ignored_columns)
    ignored = (*decoded.ignored_columns, "text")
    return Incoming(batch=replace(decoded.batch, text=None), body=None, ignored_columns=ignored)


def summary_meta(values: dict[str, Any]) -> BatchMeta:
    """Metadata of a summary.

    Raises:
        Unprocessable: a field is out of range; names it.
    """
    known = {field.name for field in fields(BatchMeta)}
    meta = BatchMeta(**{name: value for name, value in values.items() if name in known and value is not None})
    errors = check_meta(meta)
    if errors:
        raise Unprocessable.of(*errors)
    return meta
