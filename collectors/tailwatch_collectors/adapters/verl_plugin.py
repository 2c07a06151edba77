"""What verl imports: as the entry point `tailwatch` of its group `verl.plugins` (0.9 and later), or by name.

    VERL_USE_EXTERNAL_MODULES=tailwatch_collectors.adapters.verl_plugin     (verl 0.6 to 0.8)

verl imports it and calls nothing, in every process and before its trainers exist, so importing is what installs the
hooks. Without `TAILWATCH_URL` or `TAILWATCH_SPOOL_DIR` it does nothing at all.
"""

from __future__ import annotations

from tailwatch_collectors.adapters import base, verl

if base.wanted():
    verl.install()
