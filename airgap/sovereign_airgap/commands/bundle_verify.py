# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle verify`: every defect on a line of its own, or one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovereign_airgap.options import FILE, run_options
from sovereign_airgap.progress import Progress, served, shown


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--key", "keys", type=FILE, multiple=True, help="A public key to trust (repeatable).")
@click.option(
    "--threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many must have signed."
)
@click.option("--base", type=click.Path(path_type=Path), help="The bundle that a delta was made against.")
@click.option("--parallel", type=click.IntRange(1), help="Files hashed at a time; as many as cores.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of sentences.")
@run_options
@click.pass_context
def bundle_verify_command(
    context: click.Context,
    path: Path,
    keys: tuple[Path, ...],
    threshold: int,
    base: Path | None,
    parallel: int | None,
    as_json: bool,
    how: str,
    progress_port: int | None,
) -> None:
    """Checks the bundle PATH (its directory, its NAME.parts.json or their folder): every blob is hashed,
    nothing is missing or surplus, the bill of materials agrees, and with --key the signatures hold."""
    if threshold > 1 and not keys:
        raise click.UsageError("--threshold counts the keys given with --key; give them.")
    from sovereign_airgap.bundle.opening import open_bundle
    from sovereign_airgap.bundle.verify import examine
    from sovereign_airgap.signing.keys import PublicKey

    trusted = [PublicKey.load(key) for key in keys]
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        report = examine(
            open_bundle(path),
            trusted,
            threshold,
            progress,
            parallel,
            None if base is None else open_bundle(base),
        )
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    found = report.verified
    message = f"{found.name} {found.version} is whole: {found.blobs} blobs, {found.size} bytes."
    context.obj.update(
        reason="Verified", message=message, digest=str(found.index_digest), bytes=found.size,
        blobs=found.blobs, signedBy=",".join(found.signed_by),
    )  # fmt: skip
    if as_json:
        return
    click.echo(message)
    click.echo(f"index {found.index_digest}")
    if found.absent:
        where = "were found there, not hashed" if base else "were not looked for: give --base"
        click.echo(f"{found.absent} blobs are with the base {found.index.base}; they {where}")
    for key_id in found.signed_by:
        click.echo(f"signed by {key_id}")
    if not keys:
        click.echo("No signature was checked: give --key.")
