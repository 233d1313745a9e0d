# SPDX-License-Identifier: Apache-2.0
"""The group `bundle`: its verbs stand in files of their own, and `cli` adds them."""

from __future__ import annotations

import click


@click.group("bundle")
def bundle_group() -> None:
    """Carries models over an air gap: on the connected side create, sign and split; on the other verify
    and load."""
