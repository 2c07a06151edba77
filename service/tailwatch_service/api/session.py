"""Routes of the login: a key exchanged for a cookie that scripts cannot read."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tailwatch_service import answers, body, gate
from tailwatch_service.api.deps import ServicesDep
from tailwatch_service.errors import BadRequest, Forbidden, Unauthorized
from tailwatch_service.services import Services
from tailwatch_service.storage import keys

router = APIRouter(tags=["login"])

FORM = "application/x-www-form-urlencoded"
_LIMIT = 8192


class LoginIn(BaseModel):
    """A key."""

    model_config = ConfigDict(strict=True)

    key: str = Field(min_length=1, max_length=512)


@router.post("/login", summary="Exchange a key for a cookie")
async def post_login(
    request: Request, services: ServicesDep, next_page: Annotated[str, Query(alias="next", max_length=512)] = "/"
) -> Response:
    """Takes {"key": ...} as JSON, or a form with the field `key` and then leads on to `next`."""
    client = request.client.host if request.client else "unknown"
    services.gate.spend(f"login {client}", per_minute=gate.LOGINS_PER_MINUTE)
    if not gate.same_origin(request, services.settings, required=False):
        raise Forbidden(f"origin {request.headers.get('origin')!r:.120} is another site")
    media_type = body.media_type(request, accepted=("application/json", FORM))
    secret = await _secret(request, media_type)
    key = await run_in_threadpool(keys.verify, services.db, secret)
    if key is None:
        raise Unauthorized("this key is unknown or revoked")
    life_s = services.settings.cookie_hours * 3600.0
    token = await run_in_threadpool(_open, services, key.key_id, life_s)
    services.gate.forget()
    if media_type == FORM:
        target = next_page if next_page.startswith("/") and next_page[1:2] not in {"/", "\\"} else "/"
        answer = Response(status_code=303, headers={"Location": target})
    else:
        answer = answers.json({"key_id": key.key_id, "scopes": sorted(key.scopes), "project": key.project})
    answer.set_cookie(
        gate.COOKIE,
        token,
        max_age=int(life_s),
        path="/",
        secure=gate.is_https(request, services.settings),
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout", status_code=204, summary="End the login")
async def post_logout(request: Request, services: ServicesDep) -> Response:
    """Ends the session on the server too; without one there is nothing to do."""
    if not gate.same_origin(request, services.settings, required=False):
        raise Forbidden(f"origin {request.headers.get('origin')!r:.120} is another site")
    token = request.cookies.get(gate.COOKIE)
    if token:
        await run_in_threadpool(keys.close_session, services.db, token)
        services.gate.forget()
    answer = Response(status_code=204)
    answer.delete_cookie(gate.COOKIE, path="/", httponly=True, samesite="strict")
    return answer


async def _secret(request: Request, media_type: str) -> str:
    if media_type == FORM:
        try:
            fields = parse_qs((await body.read(request, limit=_LIMIT)).decode(), max_num_fields=8)
        except ValueError as error:
            raise BadRequest("the form does not parse") from error
        return body.checked(LoginIn, {name: values[0] for name, values in fields.items()}).key
    return (await body.read_json(request, LoginIn, limit=_LIMIT)).key


def _open(services: Services, key_id: str, life_s: float) -> str:
    now = services.clock()
    keys.record(services.db, actor=key_id, action="login", subject=key_id, now=now)
    return keys.open_session(services.db, key_id, now=now, life_s=life_s)
