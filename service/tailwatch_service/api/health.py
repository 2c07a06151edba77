"""Routes that say whether the service lives, and whether it can take work."""

from __future__ import annotations

from fastapi import APIRouter, Response

from tailwatch_service import answers
from tailwatch_service.api.deps import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers")
async def healthz() -> Response:
    """Open to everyone; touches nothing."""
    return answers.json({"status": "ok"})


@router.get("/readyz", responses={503: {"description": "Not ready."}}, summary="The database and the writer work")
def readyz(services: ServicesDep) -> Response:
    """Open to everyone; 503 while batches could not be stored."""
    checks = {"database": services.db.ready(), "writer": services.writer.alive()}
    ready = all(checks.values())
    content = {"status": "ready" if ready else "not ready", "checks": checks, "insecure": services.settings.insecure}
    return answers.json(content, status=200 if ready else 503)
