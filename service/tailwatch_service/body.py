"""Request bodies: read within a limit, decompressed within a limit.

Bytes are counted as they arrive, whatever Content-Length says. What is beyond the limit is read and thrown away for
a while: a client that is still sending would otherwise see a broken connection instead of the answer, and would send
the same body again for ever.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import orjson
import zstandard
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from tailwatch_collectors.errors import FieldError
from tailwatch_service.errors import BadRequest, TooLarge, Unprocessable, UnsupportedMedia

ENCODINGS = ("zstd", "gzip", "identity")
"""Content-Encoding values that are read."""

DRAIN_FACTOR = 4
"""How much of a body beyond the limit is read before the connection is given up, in limits."""

DRAIN_S = 10.0
"""How long that may take, seconds."""

_PIECE = 4096  # a 4 kB piece of zstd decodes to 128 MB at the very most
_WINDOW = 128 * 2**20

Model = TypeVar("Model", bound=BaseModel)


def media_type(request: Request, *, accepted: Iterable[str]) -> str:
    """Media type of the body.

    Raises:
        UnsupportedMedia: it is not one of `accepted`, or the encoding is unknown.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in accepted:
        raise UnsupportedMedia(f"content type {given or 'absent'!r:.120}; accepted are {', '.join(accepted)}")
    encoding_of(request)
    return given


async def read(request: Request, *, limit: int) -> bytes:
    """The body as it arrived.

    Args:
        request: the request, its body not read yet.
        limit: most bytes of it.

    Raises:
        TooLarge: longer than `limit`, or said to be.
        BadRequest: shorter or longer than Content-Length says, or cut off.
    """
    declared = _declared(request)
    stream = request.stream()
    if declared is not None and declared > limit:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(stream, most=DRAIN_FACTOR * limit)
        raise TooLarge(f"the body has {declared} bytes, limit {limit}")
    received = 0
    chunks: list[bytes] = []
    try:
        async for chunk in stream:
            received += len(chunk)
            if received > limit:
                chunks.clear()
                await _drain(stream, most=DRAIN_FACTOR * limit)
                raise TooLarge(f"the body has over {limit} bytes, the limit")
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise BadRequest(f"the body was cut off after {received} bytes") from error
    if declared is not None and received != declared:
        raise BadRequest(f"the body has {received} bytes, Content-Length says {declared}")
    return b"".join(chunks)


def decompress(body: bytes, *, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding. CPU work: call it off the event loop.

    Raises:
        TooLarge: it decodes to more than `limit` bytes; found out before more than that is held.
        BadRequest: not of that encoding, or cut off.
    """
    if encoding == "identity":
        if len(body) > limit:
            raise TooLarge(f"the body has {len(body)} bytes, limit {limit}")
        return body
    pieces = _gunzip(body) if encoding == "gzip" else _unzstd(body)
    out: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            if size > limit:
                raise TooLarge(f"the {encoding} body decodes to over {limit} bytes, the limit")
            out.append(piece)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise BadRequest(f"the body is not valid {encoding}: {error!s:.200}") from error
    return b"".join(out)


def encoding_of(request: Request) -> str:
    """Content-Encoding of the body, one of `ENCODINGS`.

    Raises:
        UnsupportedMedia: another one.
    """
    given = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    encoding = {"x-gzip": "gzip"}.get(given, given)
    if encoding not in ENCODINGS:
        raise UnsupportedMedia(f"content encoding {given!r:.80}; accepted are {', '.join(ENCODINGS)}")
    return encoding


async def read_json(request: Request, model: type[Model], *, limit: int) -> Model:
    """A small JSON body as a checked record.

    Raises:
        UnsupportedMedia, TooLarge, BadRequest: as `read` and `decompress`; or it is not JSON.
        Unprocessable: a field is missing, unknown or wrong; names it.
    """
    media_type(request, accepted=("application/json",))
    body = await read(request, limit=limit)
    encoding = encoding_of(request)
    if encoding != "identity":
        body = await asyncio.to_thread(decompress, body, encoding=encoding, limit=limit)
    return checked(model, parse_json(body))


def parse_json(body: bytes) -> Any:
    """A JSON document; NaN and infinities are not JSON.

    Raises:
        BadRequest: it is not JSON; says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error


def checked(model: type[Model], value: Any) -> Model:
    """A parsed value as a checked record.

    Raises:
        Unprocessable: a field is missing, unknown or wrong; names it.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Unprocessable.of(*findings(error.errors())) from error


def findings(errors: Iterable[Any]) -> list[FieldError]:
    """pydantic's errors as ours: the field's path, what is wrong and with which value."""
    found = []
    for error in errors:
        path = [str(part) for part in error["loc"] if part not in {"body", "query", "path", "header"}]
        given = error.get("input")
        shown = "" if error["type"] == "missing" or isinstance(given, dict | list) else f" (got {given!r:.80})"
        found.append(FieldError(column=".".join(path) or None, reason=f"{error['msg'][:200]}{shown}"))
    return found


def _declared(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise BadRequest(f"Content-Length is {text!r:.40}, not a number of bytes")
    return int(text)


async def _drain(stream: AsyncIterator[bytes], *, most: int) -> None:
    async def discard() -> None:
        left = most
        async for chunk in stream:
            left -= len(chunk)
            if left < 0:
                return

    try:
        await asyncio.wait_for(discard(), DRAIN_S)
    except (ClientDisconnect, asyncio.TimeoutError):  # it hears the answer or it does not
        return


def _gunzip(body: bytes) -> Iterable[bytes]:
    return _frames(body, lambda: zlib.decompressobj(wbits=31))


def _unzstd(body: bytes) -> Iterable[bytes]:
    return _frames(body, lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj())


def _frames(body: bytes, make: Callable[[], Any]) -> Iterable[bytes]:
    """Decode concatenated frames, a piece of input at a time, so that a bomb is seen before it goes off."""
    view = memoryview(body)
    decoder = make()
    position = 0
    while position < len(view):
        if decoder.eof:
            decoder = make()
        piece = view[position : position + _PIECE]
        yield decoder.decompress(piece)
        position += len(piece) - len(decoder.unused_data)
    if not decoder.eof:
        raise EOFError(f"cut off after {len(body)} bytes")
