"""All routes of ingest."""

from __future__ import annotations

from fastapi import APIRouter

from tailwatch_service.ingest import batches, notes

router = APIRouter()
router.include_router(batches.router)
router.include_router(notes.router)
