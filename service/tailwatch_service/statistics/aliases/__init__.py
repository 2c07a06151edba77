"""What other tools call our metrics, and what differs: one file per tool, one row per key of its logs.

Read from the tools' sources at the version each file names. The registry shows these names, `translate` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tailwatch_service.statistics.aliases.alias import Alias, Tool, Transform
from tailwatch_service.statistics.aliases.areal import AREAL
from tailwatch_service.statistics.aliases.ms_swift import MS_SWIFT
from tailwatch_service.statistics.aliases.nemo_rl import NEMO_RL
from tailwatch_service.statistics.aliases.open_instruct import OPEN_INSTRUCT
from tailwatch_service.statistics.aliases.openrlhf import OPENRLHF
from tailwatch_service.statistics.aliases.prime_rl import PRIME_RL
from tailwatch_service.statistics.aliases.roll import ROLL
from tailwatch_service.statistics.aliases.skyrl import SKYRL
from tailwatch_service.statistics.aliases.slime import MILES, SLIME
from tailwatch_service.statistics.aliases.tinker import TINKER
from tailwatch_service.statistics.aliases.trl import TRL, TRL_ASYNC
from tailwatch_service.statistics.aliases.verl import VERL

__all__ = ["TOOLS", "Alias", "Tool", "Transform", "names_elsewhere"]

TOOLS: Mapping[str, Tool] = {
    tool.id: tool
    for tool in (
        VERL, TRL, TRL_ASYNC, PRIME_RL, NEMO_RL, SLIME, MILES, AREAL, ROLL, MS_SWIFT, SKYRL, OPENRLHF, OPEN_INSTRUCT,
        TINKER,
    )
}  # fmt: skip
"""Every tool by its id, in the order in which they are documented."""


def names_elsewhere(metric: str) -> dict[str, str]:
    """What other tools call a metric: tool to its keys, each with what differs in brackets."""
    found = {}
    for tool in TOOLS.values():
        rows = [alias.shown for alias in tool.aliases if alias.metric == metric]
        if rows:
            found[tool.name] = "; ".join(rows)
    return found
