"""Routes of translate: another tool's log line in our names, and the keys of each tool that are known."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.types import MAX_STEP
from tailwatch_service import answers, body
from tailwatch_service.api.deps import Reader
from tailwatch_service.errors import Unprocessable
from tailwatch_service.statistics.aliases import TOOLS, Tool
from tailwatch_service.statistics.translate import UnknownToolError, tool_of, translate
from tailwatch_service.translate_cli import content, keys

router = APIRouter(tags=["registry"])

MAX_BYTES = 2**20
"""Largest log line, bytes."""
MAX_KEYS = 10_000
"""Most keys in one."""

ToolName = Annotated[str, Field(min_length=1, max_length=64)]


class TranslateIn(BaseModel):
    """A log line as a client sends it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tool: ToolName = Field(alias="from", description=f"One of {', '.join(TOOLS)}, or its name.")
    metrics: Annotated[dict[Annotated[str, Field(max_length=512)], Any], Field(max_length=MAX_KEYS)]
    """Keys and numbers; what is no number is named in the answer."""
    step: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    """Given back."""


_BODY = {"required": True, "content": {"application/json": {"schema": TranslateIn.model_json_schema()}}}


@router.post("/translate", openapi_extra={"requestBody": _BODY}, summary="Another tool's log line in our names")
async def post_translate(request: Request, _principal: Reader) -> Response:
    """Our metrics with what differs, and the keys that have no counterpart with the reason. Nothing is stored."""
    record = await body.read_json(request, TranslateIn, limit=MAX_BYTES)
    found = translate(_tool(record.tool).id, record.metrics)
    return answers.json(content(found) | {"step": record.step})


@router.get("/translate", summary="The keys of a tool that are known")
def get_translate(
    _principal: Reader, tool: Annotated[str, Query(alias="from", min_length=1, max_length=64)]
) -> Response:
    """Every key with our metric, whether it is exact, and what differs or why there is none."""
    return answers.json(keys(_tool(tool)))


def _tool(name: str) -> Tool:
    try:
        return tool_of(name)
    except UnknownToolError as error:
        raise Unprocessable.of(FieldError(column="from", reason=str(error))) from error
