# SPDX-License-Identifier: Apache-2.0
"""The verb `cache hold`: runs beside every model that is served from the node's cache."""

from __future__ import annotations

from pathlib import Path

import click

from sovereign_airgap.digest import Digest
from sovereign_airgap.options import DIGEST


@click.command("hold")
@click.option(
    "--tenant-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The tenant's folder of the cache; read-only will do.",
)
@click.option("--manifest", type=DIGEST, required=True, help="The artifact that is wanted.")
@click.option(
    "--held-file",
    type=click.Path(path_type=Path),
    required=True,
    help="Is there for as long as the artifact is held.",
)
@click.option("--config-only", is_flag=True, help="Everything but the weights is enough.")
@click.option(
    "--verify",
    type=click.Choice(["changed", "always"]),
    default="changed",
    show_default=True,
    help="Compare sizes and times with the marker, or hash every file as well.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86400),
    default=120,
    show_default=True,
    help="How long to wait until the artifact is complete.",
)
@click.option("--parallel", type=click.IntRange(1, 16), help="Files hashed at a time; default: the cores.")
@click.option(
    "--result-file",
    type=click.Path(path_type=Path),
    expose_value=False,  # the command line's end writes it, however the run ended
    help="Write the result here as JSON.",
)
@click.pass_context
def cache_hold_command(
    context: click.Context,
    tenant_dir: Path,
    manifest: Digest,
    held_file: Path,
    config_only: bool,
    verify: str,
    seconds: float,
    parallel: int | None,
) -> None:
    """Waits for an artifact in the node's cache, checks it, and keeps it from being evicted.

    Ends with 0 when a signal comes while it holds the artifact.
    """
    from sovereign_airgap.cache.ending import ending_on_request
    from sovereign_airgap.cache.hold import HoldOptions, hold

    options = HoldOptions(config_only, verify == "always", seconds, parallel)
    with ending_on_request() as ending:
        held = hold(tenant_dir, manifest, held_file, options, ending)
    context.obj.update(
        reason="Held",
        message=f"{held.files} files ({held.size} bytes) were held until {held.signal} came.",
        digest=str(manifest),
        bytes=held.size,
        files=held.files,
    )
    click.echo(context.obj["message"])
