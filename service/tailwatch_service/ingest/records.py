"""Records: the small JSON bodies of trainers, checked by pydantic."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tailwatch_collectors.types import MAX_NAME_LENGTH, MAX_PART, MAX_RANK, MAX_STEP, Phase

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Attempt = Annotated[int, Field(ge=1, le=MAX_STEP)]
Rank = Annotated[int, Field(ge=0, le=MAX_RANK)]


class _Record(BaseModel):
    """Whose attempt it is; numbers must be numbers."""

    model_config = ConfigDict(strict=True)

    session: Name | None = None
    """Launch of the job; the service maps it to an attempt."""
    attempt: Attempt | None = None
    """Attempt, where the client knows it; wins over `session`."""


class ScalarsIn(_Record):
    """Numbers of one step."""

    step: Step
    stream: Name = "train"
    values: Annotated[dict[Annotated[str, Field(min_length=1, max_length=128)], float | None], Field(min_length=1)]
    """By name; null: it does not exist for this step."""


class EventIn(_Record):
    """Something that happened."""

    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """weight_sync, resume, checkpoint, config, finished, or a name of your own."""
    step: Step | None = None
    payload: dict[str, Any] = Field(default_factory=dict)
    """Details."""


class HeartbeatIn(_Record):
    """A rank's sign of life. Further fields are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    rank: Rank = 0
    step: Step | None = None


class SummaryMeta(BaseModel):
    """Metadata of a summary, as query parameters."""

    model_config = ConfigDict(extra="forbid")

    step: Step
    rank: Rank = 0
    world_size: Annotated[int, Field(ge=1, le=MAX_RANK + 1)] | None = None
    part: Annotated[int, Field(ge=0, le=MAX_PART)] = 0
    final: bool = True
    phase: Phase = "rollout"
    update_index: Step = 0
    stream: Name = "train"
    session: Name | None = None
    attempt: Attempt | None = None
    train_version: Step | None = None
    framework: Name | None = None
    recorded_at: float | None = None
