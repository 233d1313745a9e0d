# SPDX-License-Identifier: Apache-2.0
"""The verb `registry verify`: every blob on a registry's disk hashed again, every name followed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from sovereign_airgap.errors import RegistryDamaged
from sovereign_airgap.options import run_options
from sovereign_airgap.progress import Progress, served, shown

_NAMED = 5


@click.command("verify")
@click.argument("storage", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--repair", "repairs", is_flag=True, help="Remove damaged blobs, so that they are brought again."
)
@click.option("--parallel", type=click.IntRange(1, 16), help="Blobs hashed at a time; default: the cores.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@run_options
@click.pass_context
def registry_verify_command(
    context: click.Context,
    storage: Path,
    repairs: bool,
    parallel: int | None,
    as_json: bool,
    how: str,
    progress_port: int | None,
) -> None:
    """Checks STORAGE, the folder of a registry (distribution v3), while the registry runs or not.

    Ends with 3 unless the registry is whole: also after a repair, until what was removed is back.
    """
    from rich.console import Console

    from sovereign_airgap import registry_repair, registry_verify
    from sovereign_airgap.registry_storage import Storage

    progress = Progress()
    opened = Storage(storage)
    with served(progress, progress_port), shown(progress, how):
        found = registry_verify.verify(opened, progress, parallel)
        repaired = registry_repair.repair(opened, found) if repairs else registry_repair.Repaired((), ())
    if as_json:
        removed = {"removed": list(repaired.removed), "toBring": list(repaired.to_bring)}
        click.echo(json.dumps({**found.as_json(), **removed}, indent=2))
    else:
        # A path is no markup: what it breaks would hide the exit code.
        registry_verify.show(found, Console(markup=False, emoji=False))
        for path in repaired.removed:
            click.echo(f"removed {path}")
    left = [each for each in found.findings if not (repairs and each.kind in registry_repair.REMOVED)]
    lacking = repaired.to_bring if repairs else ()
    if left or lacking:
        raise RegistryDamaged(_told(storage, left, lacking, repairs))
    context.obj.update(
        reason="Verified",
        message=f"{found.blobs} blobs ({found.size} bytes) in {storage} are what their names say.",
        bytes=found.size,
        blobs=found.blobs,
    )


def _told(storage: Path, left: Sequence[object], lacking: tuple[str, ...], repairs: bool) -> str:
    if lacking:
        names = ", ".join(lacking[:_NAMED]) + (
            f" and {len(lacking) - _NAMED} more" if lacking[_NAMED:] else ""
        )
        return (
            f"Expected {storage} to hold all that its manifests name; what was damaged is removed, so load "
            f"or mirror these again: {names}."
        )
    done = (
        "are left after the repair" if repairs else "were found; look at the table, then run it with --repair"
    )
    return f"Expected {storage} to hold what its names say, but {len(left)} defects {done}."
