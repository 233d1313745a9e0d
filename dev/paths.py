# SPDX-License-Identifier: Apache-2.0
"""Where dev/ keeps things outside the repository: what can be made again (cache) and what runs (state)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Go builds, images, base root file systems: large, slow to make, safe to delete while nothing runs."""
    return _root("SOVEREIGN_CACHE", "XDG_CACHE_HOME", ".cache")


def state_root() -> Path:
    """One folder for each embedded cluster below `clusters/`."""
    return _root("SOVEREIGN_STATE", "XDG_STATE_HOME", ".local/state")


def _root(own: str, standard: str, below_home: str) -> Path:
    if chosen := os.environ.get(own):
        return Path(chosen).resolve()
    if base := os.environ.get(standard):
        return (Path(base) / "sovereign").resolve()
    return Path.home() / below_home / "sovereign"
