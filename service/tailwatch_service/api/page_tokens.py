"""What the run page shows beside its charts: corrections replayed on a step, and sequences of kept tokens."""

from __future__ import annotations

from dataclasses import asdict

from tailwatch_collectors import wire
from tailwatch_collectors.summary import Summary
from tailwatch_dashboards.types import Replayed, SequenceTokens, SignShare, Slider
from tailwatch_service.api.whatif import replay
from tailwatch_service.statistics.corrections import CORRECTIONS
from tailwatch_service.statistics.whatif import Outcome
from tailwatch_service.storage import batches
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments
from tailwatch_service.types import StepKey

SHOWN_TOKENS = 400
"""Tokens of a sequence shown around the one that was asked for."""

NOT_KEPT = "The tokens of this step are not kept. Start the service with --keep-tokens all to keep those to come."


def corrections(summary: Summary | str | None) -> tuple[Replayed, ...]:
    """Every correction with its own bounds; a text says why there is no summary."""
    return tuple(correction(summary, name) for name in CORRECTIONS)


def correction(
    summary: Summary | str | None,
    name: str,
    *,
    lower: float | None = None,
    upper: float | None = None,
    budget: float | None = None,
) -> Replayed:
    """One correction, replayed where there is a step.

    Raises:
        Unprocessable: unknown, or its bounds make no sense.
    """
    given = {"lower": lower, "upper": upper, "budget": budget}
    found = summary or "no step is closed yet"
    made: Outcome | str = found if isinstance(found, str) else replay(found, name, **given)
    known = CORRECTIONS[name]
    bounds = {"lower": known.lower, "upper": known.upper, "budget": known.budget}
    sliders = [
        Slider(
            field=field,
            value=bound.default if (value := given[field]) is None else value,
            least=bound.least,
            most=bound.most,
        )
        for field, bound in bounds.items()
        if bound is not None
    ]
    text = {part: getattr(known, part) for part in ("name", "title", "effect", "description", "reference")}
    unit = "tokens" if known.quantity == "token" else "sequences"
    if isinstance(made, str):
        return Replayed(**text, unit=unit, sliders=tuple(sliders), reason=made)
    values = asdict(made)
    values["signs"] = tuple(SignShare(**one) for one in values["signs"])
    reason = values.pop("missing")
    for name_ in ("correction", "budget", "unit"):
        del values[name_]
    return Replayed(**text, unit=unit, sliders=tuple(sliders), reason=reason, **values)


def kept(db: Database, key: StepKey) -> bool:
    """Whether the tokens of a step are kept, at least in part."""
    return any(part.segment for part in batches.of_step(db, key))


def sequence(
    db: Database, segments: Segments, key: StepKey, *, rank: int, part: int, row: int, position: int
) -> SequenceTokens | str:
    """The tokens around one position of a sequence, or why they cannot be shown."""
    names = {(one.rank, one.part): one.segment for one in batches.of_step(db, key)}
    name = names.get((rank, part))
    if name is None:
        return NOT_KEPT if (rank, part) in names else f"Step {key.step} has no batch of rank {rank}, part {part}."
    batch = wire.decode(segments.read(name)).batch
    if row >= batch.sequences:
        return f"This batch has {batch.sequences} sequences."
    start, end = (int(offset) for offset in batch.offsets_B1[row : row + 2])
    first = max(start, min(start + position - SHOWN_TOKENS // 2, end - SHOWN_TOKENS))
    cut = slice(first, min(end, first + SHOWN_TOKENS))
    ids, mask = batch.token_ids_N, batch.mask_N
    return SequenceTokens(
        step=key.step,
        rank=rank,
        part=part,
        row=row,
        seq_id=batch.seq_id[row] if batch.seq_id is not None else None,
        first=first - start,
        length=end - start,
        chosen=position,
        infer_logprobs=tuple(map(float, batch.infer_logprobs_N[cut])),
        train_logprobs=tuple(map(float, batch.train_logprobs_N[cut])),
        mask=tuple(map(bool, mask[cut])) if mask is not None else (True,) * (cut.stop - cut.start),
        token_ids=None if ids is None else tuple(map(int, ids[cut])),
    )
