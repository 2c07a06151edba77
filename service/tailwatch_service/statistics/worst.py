"""The tokens behind an alert: the worst at both ends of d, with where they stand."""

from __future__ import annotations

from dataclasses import dataclass

from tailwatch_collectors.summary import Summary


@dataclass(frozen=True, slots=True)
class WorstToken:
    """One token among the worst of a step."""

    log_ratio: float
    infer_logprob: float
    train_logprob: float
    rank: int
    part: int
    row: int
    """Sequence within its batch."""
    position: int
    """Response token t."""
    token_id: int | None
    seq_id: str | None


def worst_tokens(summary: Summary) -> list[WorstToken]:
    """Both ends, the largest |d| first."""
    found = []
    for sign, worst in ((1.0, summary.worst_upper), (-1.0, summary.worst_lower)):
        for i in range(len(worst.priority)):
            if worst.priority[i] <= 0:  # fewer tokens than places: those of the other end, or identical ones
                continue
            found.append(
                WorstToken(
                    log_ratio=sign * float(worst.priority[i]),
                    infer_logprob=float(worst.infer_logprob[i]),
                    train_logprob=float(worst.train_logprob[i]),
                    rank=int(worst.rank[i]),
                    part=int(worst.part[i]),
                    row=int(worst.row[i]),
                    position=int(worst.position[i]),
                    token_id=int(worst.token_id[i]) if worst.token_id[i] >= 0 else None,
                    seq_id=worst.seq_id[i] or None,
                )
            )
    return sorted(found, key=lambda token: -abs(token.log_ratio))
