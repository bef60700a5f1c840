"""Settings of every test: nothing is written outside temporary directories."""

from __future__ import annotations

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="prismrec-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name
