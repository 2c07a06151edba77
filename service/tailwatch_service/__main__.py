"""`python -m tailwatch_service`: the command line."""

from __future__ import annotations

import sys

from tailwatch_service.cli import main

sys.exit(main())
