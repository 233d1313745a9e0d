# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle diff`: a table, or one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import click

BUNDLE = click.Path(path_type=Path)


@click.command("diff")
@click.argument("old", type=BUNDLE)
@click.argument("new", type=BUNDLE)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def bundle_diff_command(old: Path, new: Path, as_json: bool) -> None:
    """Shows what the bundle NEW changes against OLD, and the bytes that a delta would carry."""
    from rich.console import Console

    from sovereign_airgap.bundle.diff import diff, show
    from sovereign_airgap.bundle.opening import open_bundle

    found = diff(open_bundle(old), open_bundle(new))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        show(found, Console())
