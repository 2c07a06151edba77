"""`python -m tailwatch_collectors`: the commands that need no service on this machine."""

from __future__ import annotations

import sys

from tailwatch_collectors.cli import main

sys.exit(main())
