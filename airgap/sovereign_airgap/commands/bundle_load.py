# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle load`: a bundle into a registry, and the files with which a site uses it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovereign_airgap.access import Access
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.options import FILE, OciReferenceType, registry_options, run_options
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.reference import OciReference

_PATH = click.Path(exists=True, path_type=Path)


@click.command("load")
@click.argument("bundle", type=_PATH)
@click.argument("target", type=OciReferenceType())
@click.option(
    "--key", "keys", type=FILE, multiple=True, help="A public key that must have signed (repeatable)."
)
@click.option(
    "--threshold", type=click.IntRange(1), default=1, show_default=True, help="How many of the keys."
)
@click.option("--require-signature", is_flag=True, help="Load nothing unless keys are given and have signed.")
@click.option("--allow-downgrade", is_flag=True, help="Also a version older than one that was loaded before.")
@click.option("--base", type=_PATH, help="The base of a delta, where the registry does not hold it.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Write values and models here."
)
@click.option(
    "--registry-name", metavar="HOST", help="The registry as nodes and pods know it; default: TARGET's."
)
@click.option("--namespace", default="models", show_default=True, help="For models that bring no manifest.")
@registry_options
@run_options
@click.pass_context
def bundle_load_command(
    context: click.Context,
    bundle: Path,
    target: OciReference,
    keys: tuple[Path, ...],
    threshold: int,
    require_signature: bool,
    allow_downgrade: bool,
    base: Path | None,
    output: Path | None,
    registry_name: str | None,
    namespace: str,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Loads BUNDLE (a directory or parts) into TARGET (oci://HOST[/PREFIX]).

    With --key nothing is sent unless the signature holds. What the registry has is not sent again: after any
    failure, run the same command.
    """
    from rich.console import Console

    from sovereign_airgap.bundle import relocate, site_folder
    from sovereign_airgap.bundle.load import LoadOptions, fetching, load
    from sovereign_airgap.bundle.opening import open_bundle

    if target.tag is not None or target.digest is not None:
        raise click.UsageError("TARGET is a place, as in oci://HOST or oci://HOST/PREFIX: no tag, no digest.")
    if registry_name is not None:
        _require_host(registry_name)
    if keys:
        from sovereign_airgap.signing.keys import PublicKey

        public = tuple(PublicKey.load(key) for key in keys)
    else:
        public = ()
    if output is not None:
        site_folder.require_ours(output)
    options = LoadOptions(
        access=access,
        keys=public,
        threshold=threshold,
        require_signature=require_signature,
        allow_downgrade=allow_downgrade,
        base=None if base is None else open_bundle(base),
        patience=waits,
    )
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        loaded = load(open_bundle(bundle), target, options, progress)
        with fetching(loaded, options) as fetch:
            found = relocate.relocate(loaded, relocate.Wishes(registry_name, namespace), fetch)
        if output is not None:
            files = {**found.files, "loaded.json": relocate.as_json(found, loaded)}
            site_folder.write(files, output)
    index = loaded.cargo.index
    context.obj.update(
        reason="Loaded",
        message=f"The bundle {index.name} {index.version} is in {target}: {loaded.sent} blobs "
        f"({loaded.sent_bytes} bytes) were sent, {loaded.mounted} mounted, {loaded.present} were there.",
        digest=str(loaded.cargo.index_digest),
        bytes=loaded.sent_bytes,
        signedBy=",".join(loaded.signed_by),
    )
    if not loaded.signed_by:
        click.echo("no key was given: nobody's signature was checked", err=True)
    for note in found.notes:
        click.echo(f"left to do: {note}", err=True)
    if how == "json":
        click.echo(json.dumps(context.obj))
    else:
        relocate.show(found, Console())
        click.echo(str(context.obj["message"]))
        if output is not None:
            click.echo(f"Values and models are in {output}.")


def _require_host(name: str) -> None:
    try:
        OciReference(name)
    except InvalidReference as error:
        raise click.UsageError(str(error)) from error
