# SPDX-License-Identifier: Apache-2.0
"""The group `registry`: looking after what a registry holds. Its verbs stand in files of their own."""

from __future__ import annotations

import click


@click.group("registry")
def registry_group() -> None:
    """Looks after a registry: finds what went bad on its disk, and removes what nobody needs."""
