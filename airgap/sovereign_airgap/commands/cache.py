# SPDX-License-Identifier: Apache-2.0
"""The group `cache`: a node's own copies of the weights. Its verbs stand in files of their own."""

from __future__ import annotations

import click


@click.group("cache")
def cache_group() -> None:
    """Keeps models on a node, so that no byte comes twice: checked, shared by pods, read-only."""
