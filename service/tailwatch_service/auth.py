"""What a request may do: dependencies that name the principal and the run, and refuse what it does not reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from tailwatch_service.errors import Forbidden, NotFound
from tailwatch_service.gate import Principal
from tailwatch_service.services import Services, services_of
from tailwatch_service.storage import runs
from tailwatch_service.types import Run, Scope


def require(scope: Scope) -> Callable[[Request], object]:
    """A dependency: the principal, who has the scope."""

    async def principal(request: Request) -> Principal:
        found = await services_of(request).gate.principal(request)
        if not found.may(scope):
            raise Forbidden(f"this key may not {scope}; its scopes are {', '.join(sorted(found.scopes)) or 'none'}")
        return found

    return principal


Reader = Annotated[Principal, Depends(require("read"))]
"""Who may read."""

Writer = Annotated[Principal, Depends(require("write"))]
"""Who may write."""


def check_project(principal: Principal, project: str) -> None:
    """Refuse a project that the key does not reach.

    Raises:
        Forbidden: it is limited to another one.
    """
    if principal.project not in {None, project}:
        raise Forbidden(f"this key is limited to project {principal.project!r:.120}")


def visible_run(services: Services, principal: Principal, run_id: str) -> Run:
    """A run, as far as the principal reaches. Blocks on the database.

    Raises:
        NotFound: no such run, or one of another project: a key learns nothing of what it does not reach.
    """
    run = runs.get(services.db, run_id, now=services.clock(), lost_after_s=services.settings.lost_after_s)
    _check_reach(principal, run.spec.project, run_id)
    return run


def check_run(services: Services, principal: Principal, run_id: str) -> None:
    """Refuse a run that the principal does not reach, from what was known of it a moment ago.

    Raises:
        NotFound: as `visible_run`.
    """
    _check_reach(principal, services.known.project_of(run_id, now=services.clock()), run_id)


def _check_reach(principal: Principal, project: str, run_id: str) -> None:
    if principal.project not in {None, project}:
        raise NotFound(f"run {run_id!r:.80} does not exist")


def _readable(run: str, request: Request, principal: Reader) -> Run:
    return visible_run(services_of(request), principal, run)


def _writable(run: str, request: Request, principal: Writer) -> Run:
    return visible_run(services_of(request), principal, run)


ReadableRun = Annotated[Run, Depends(_readable)]
"""The run of the path, for a reader."""

WritableRun = Annotated[Run, Depends(_writable)]
"""The run of the path, for a writer."""
