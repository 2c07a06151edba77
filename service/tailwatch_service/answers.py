"""Answers: JSON through orjson, in which NaN and infinities are null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Response

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def dumps(content: Any) -> bytes:
    """JSON; what is not a finite number is null."""
    return orjson.dumps(content, option=_OPTIONS)


def json(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(dumps(content), status_code=status, headers=dict(headers or {}), media_type="application/json")
