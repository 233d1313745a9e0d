# SPDX-License-Identifier: Apache-2.0
"""The verb `cache list`: what lies in a node's cache."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovereign_airgap.commands.cache import root_option
from sovereign_airgap.options import AMOUNT


@click.command("list")
@root_option
@click.option("--budget", type=AMOUNT, default=0, help="What it may take, to show it beside what it takes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def cache_list_command(root: Path, budget: int, as_json: bool) -> None:
    """Lists the artifacts of a node's cache; those that would be evicted first come first."""
    from rich.console import Console

    from sovereign_airgap.cache.layout import Cache
    from sovereign_airgap.cache.listing import list_cache, show

    found = list_cache(Cache(root), budget)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        show(found, Console())
