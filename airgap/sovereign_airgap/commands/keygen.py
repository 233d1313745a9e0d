# SPDX-License-Identifier: Apache-2.0
"""The verb `keygen`: a new key pair in two files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sovereign_airgap.disk import explained, sync_folder
from sovereign_airgap.options import FILE


@click.command("keygen")
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--type", "algorithm", type=click.Choice(["ed25519", "ecdsa-p256"]), default="ed25519", show_default=True
)
@click.option("--passphrase", "ask", is_flag=True, help="Ask for a passphrase that locks the private key.")
@click.option("--passphrase-file", type=FILE, help="File with that passphrase in its one line.")
@click.option("--result-file", type=click.Path(path_type=Path), help="Write the result here as JSON.")
@click.pass_context
def keygen_command(
    context: click.Context,
    name: Path,
    algorithm: str,
    ask: bool,
    passphrase_file: Path | None,
    result_file: Path | None,
) -> None:
    """Writes the private key NAME.key (for its owner only) and the public key NAME.pub.

    Neither is ever overwritten.
    """
    from sovereign_airgap.passphrase import ask_passphrase, read_passphrase
    from sovereign_airgap.signing.keys import PrivateKey

    if ask and passphrase_file is not None:
        raise click.UsageError("Give --passphrase or --passphrase-file, not both.")
    if name.name in ("", ".."):
        raise click.UsageError(f"Expected a name for the key's two files, found the folder {str(name)!a}.")
    private, public = (name.with_name(name.name + ending) for ending in (".key", ".pub"))
    for path in (private, public):
        if os.path.lexists(path):
            raise _there(path)
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    if ask:
        passphrase = ask_passphrase(f"Passphrase for {private}", twice=True)
    key = PrivateKey.generate(algorithm)
    _write_new(private, key.pem(passphrase), 0o600)
    try:
        _write_new(public, key.public.pem(), 0o644)
    except BaseException:
        private.unlink()  # one half alone would only be in the way of the next try
        raise
    sync_folder(private.parent)
    context.obj.update(
        reason="KeyMade",
        message=f"{private} signs, {public} verifies.",
        keyId=key.key_id,
        privateKey=str(private),
        publicKey=str(public),
    )
    click.echo(f"{private} signs: keep it, and keep it to yourself.", err=True)
    click.echo(f"{public} verifies: give it to those who check.", err=True)
    click.echo(key.key_id)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that was not there, with these rights from its first byte on."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with explained(path):
        try:
            descriptor = os.open(path, flags, mode)
        except FileExistsError as error:
            raise _there(path) from error
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)


def _there(path: Path) -> click.UsageError:
    return click.UsageError(f"{path} is there, and a key is never overwritten; choose another name.")
