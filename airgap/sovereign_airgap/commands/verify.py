# SPDX-License-Identifier: Apache-2.0
"""The verb `verify`: a bundle as `bundle verify` does it, or the signatures of an artifact in a registry."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovereign_airgap.access import Access
from sovereign_airgap.commands.bundle_verify import bundle_verify_command
from sovereign_airgap.options import FILE, SignableType, registry_options
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.reference import OciReference


@click.command("verify")
@click.argument("target", type=SignableType())
@click.option("--key", "keys", type=FILE, multiple=True, help="A public key to trust (repeatable).")
@click.option(
    "--threshold", type=click.IntRange(1, 16), default=1, show_default=True, help="How many must have signed."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of sentences.")
@registry_options
@click.option("--result-file", type=click.Path(path_type=Path), help="Write the result here as JSON.")
@click.pass_context
def verify_command(
    context: click.Context,
    target: Path | OciReference,
    keys: tuple[Path, ...],
    threshold: int,
    as_json: bool,
    access: Access,
    waits: Patience,
    result_file: Path | None,
) -> None:
    """Checks TARGET: a bundle (its directory or parts) with all it carries, or the signatures of an artifact
    oci://HOST/REPO@sha256:…."""
    if not isinstance(target, OciReference):
        context.invoke(bundle_verify_command, path=target, keys=keys, threshold=threshold, as_json=as_json)
        return
    if not keys:
        raise click.UsageError("An artifact's signatures are checked with --key, at least one.")
    from sovereign_airgap.artifact_signatures import artifact_signed_by
    from sovereign_airgap.signing.keys import PublicKey

    assert target.digest is not None
    trusted = [PublicKey.load(path) for path in keys]
    with Pace(waits) as pace, access.registry(target, pace, push=False) as registry:
        signed = artifact_signed_by(registry, target.digest, trusted, threshold)
    context.obj.update(
        reason="Verified", message=f"{target} is signed by {len(signed)} of the given keys.",
        digest=str(target.digest), signedBy=",".join(signed),
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"digest": str(target.digest), "signedBy": list(signed)}, indent=2))
    else:
        for key_id in signed:
            click.echo(f"signed by {key_id}")
