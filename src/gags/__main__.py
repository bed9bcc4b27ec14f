"""``python -m gags``: the same as ``gags``."""

from __future__ import annotations

import sys

from gags.cli import main

sys.exit(main())
