# SPDX-License-Identifier: Apache-2.0
"""The verb `sign`: one key's signature for a bundle or for an artifact in a registry."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from sovereign_airgap.access import Access
from sovereign_airgap.errors import BundleDefective
from sovereign_airgap.options import FILE, SignableType, registry_options
from sovereign_airgap.pace import Pace, Patience
from sovereign_airgap.reference import OciReference


@click.command("sign")
@click.argument("target", type=SignableType())
@click.option("--key", type=FILE, required=True, help="The private key, as keygen writes it.")
@click.option("--passphrase-file", type=FILE, help="File with the key's passphrase; asked for otherwise.")
@registry_options
@click.option("--result-file", type=click.Path(path_type=Path), help="Write the result here as JSON.")
@click.pass_context
def sign_command(
    context: click.Context,
    target: Path | OciReference,
    key: Path,
    passphrase_file: Path | None,
    access: Access,
    waits: Patience,
    result_file: Path | None,
) -> None:
    """Signs TARGET: a bundle's directory, or an artifact oci://HOST/REPO@sha256:….

    Signatures by other keys stay: run it once with each key. What is signed is the bundle's index.json or the
    artifact's manifest; `bundle verify` checks that the rest is there and as they say.
    """
    from sovereign_airgap.passphrase import passphrase_of
    from sovereign_airgap.signing.keys import PrivateKey

    signer = PrivateKey.load(key, passphrase_of(key, passphrase_file))
    now = datetime.now(UTC)
    if isinstance(target, OciReference):
        from sovereign_airgap.artifact_signatures import sign_artifact

        assert target.digest is not None
        with Pace(waits) as pace, access.registry(target, pace, push=True) as registry:
            where = str(target.with_digest(sign_artifact(registry, target.digest, signer, now)))
    else:
        from sovereign_airgap.bundle import signatures

        if target.is_file():
            raise BundleDefective(
                f"Expected a bundle's directory at {target}, found a file; sign before you split."
            )
        where = str(signatures.sign(target, signer, now))
    context.obj.update(reason="Signed", message=f"{target} is signed.", keyId=signer.key_id, signature=where)
    click.echo(f"signed by {signer.key_id}", err=True)
    click.echo(where)
