from __future__ import annotations

import math

from tailwatch_service.storage import scalars
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.scalars import Scalar


def test_the_last_write_wins(db: Database, run_id: str) -> None:
    first = [Scalar("reward", 0, 1.0), Scalar("reward", 1, 2.0), Scalar("reward", 1, 3.0), Scalar("grad_norm", 0, 9.0)]
    assert scalars.put(db, run_id, stream="train", attempt=1, values=first, now=1.0) == 3
    scalars.put(db, run_id, stream="train", attempt=1, values=[Scalar("reward", 0, 5.0)], now=2.0)
    with db.read() as connection:
        (points,) = scalars.read(connection, run_id, stream="train", name="reward")
    assert (points.attempt, points.steps_K.tolist(), points.values_K.tolist()) == (1, [0, 1], [5.0, 3.0])
    assert scalars.names(db, run_id) == ["grad_norm", "reward"]
    assert scalars.names(db, run_id, stream="eval") == []


def test_nan_does_not_exist_and_infinity_does(db: Database, run_id: str) -> None:
    values = [Scalar("loss", 0, math.nan), Scalar("loss", 1, math.inf)]
    scalars.put(db, run_id, stream="train", attempt=1, values=values, now=1.0)
    with db.read() as connection:
        (points,) = scalars.read(connection, run_id, stream="train", name="loss")
    assert math.isnan(points.values_K[0])
    assert points.values_K[1] == math.inf
    assert scalars.latest(db, run_id) == {"loss": (1, math.inf)}


def test_attempts_are_read_apart(db: Database, run_id: str) -> None:
    for attempt, value in ((1, 1.0), (2, 2.0)):
        scalars.put(db, run_id, stream="train", attempt=attempt, values=[Scalar("loss", 5, value)], now=1.0)
    with db.read() as connection:
        read = scalars.read(connection, run_id, stream="train", name="loss")
    assert [(p.attempt, p.values_K.tolist()) for p in read] == [(1, [1.0]), (2, [2.0])]
