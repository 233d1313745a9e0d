# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle create`: models, images, charts and files become one bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovereign_airgap.access import Access
from sovereign_airgap.options import FILE, SIZE, registry_options, run_options
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.reference import PUBLIC_ENDPOINT

if TYPE_CHECKING:
    from sovereign_airgap.bundle.spec import BundleSpec


@click.command("create")
@click.argument("spec", type=FILE, required=False)
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True,
    help="The bundle's directory, or with --part-size the folder of its parts; must not exist.",
)  # fmt: skip
@click.option("--name", help="The bundle's name, where there is no SPEC.")
@click.option("--version", type=click.IntRange(1), help="Its version; default: SPEC's, the base's + 1, or 1.")
@click.option("--model", "models", multiple=True, metavar="REF", help="hf://…@COMMIT or oci://…@sha256:….")
@click.option("--image", "images", multiple=True, metavar="REF", help="HOST/REPO:TAG or HOST/REPO@sha256:….")
@click.option(
    "--chart", "charts", type=click.Path(exists=True, path_type=Path), multiple=True,
    help="A chart's folder or archive.",
)  # fmt: skip
@click.option(
    "--file", "files", multiple=True, metavar="PATH[=TITLE]",
    help="A file, or a folder of files, and the path under which it is found.",
)  # fmt: skip
@click.option("--platform", metavar="OS/ARCH", help="Of images that name none; default: linux/amd64.")
@click.option("--all-platforms", is_flag=True, help="Carry whole indexes of images that name no platform.")
@click.option(
    "--since", type=click.Path(exists=True, path_type=Path), metavar="OLD",
    help="An earlier bundle: carry only what it lacks.",
)  # fmt: skip
@click.option("--part-size", type=SIZE, help="Make parts of this many bytes, as in 4000MiB.")
@click.option("--key", type=FILE, help="Sign with this private key.")
@click.option("--passphrase-file", type=FILE, help="File with the key's passphrase; asked for otherwise.")
@click.option("--endpoint", default=PUBLIC_ENDPOINT, show_default=True, help="Where the hub is.")
@click.option("--hub-ca", type=FILE, help="PEM file: the only authorities trusted for the hub.")
@click.option("--token-file", type=FILE, help="File with the hub token; nothing else is looked for.")
@registry_options
@run_options
@click.pass_context
def bundle_create_command(
    context: click.Context,
    spec: Path | None,
    out: Path,
    name: str | None,
    version: int | None,
    models: tuple[str, ...],
    images: tuple[str, ...],
    charts: tuple[Path, ...],
    files: tuple[str, ...],
    platform: str | None,
    all_platforms: bool,
    since: Path | None,
    part_size: int | None,
    key: Path | None,
    passphrase_file: Path | None,
    endpoint: str,
    hub_ca: Path | None,
    token_file: Path | None,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Makes a bundle of what SPEC (YAML) or the options name.

    A run that ended half-way is continued by the same command; what it had is in OUTPUT.unfinished.
    """
    listed = bool(models or images or charts or files)
    if spec is not None and (listed or name is not None):
        raise click.UsageError("Give SPEC or --name, --model, --image, --chart and --file, not both.")
    if spec is None and (not listed or name is None):
        raise click.UsageError("Give SPEC, or --name and at least one --model, --image, --chart or --file.")
    if platform is not None and all_platforms:
        raise click.UsageError("Give --platform or --all-platforms, not both.")
    # Late: the hub's client takes a CPU second to import, and whoever loads a bundle needs none of it.
    from sovereign_airgap.bundle import spec as specs
    from sovereign_airgap.bundle.create import CreateOptions, create
    from sovereign_airgap.bundle.opening import open_bundle
    from sovereign_airgap.hub import token_in
    from sovereign_airgap.passphrase import passphrase_of
    from sovereign_airgap.signing.keys import PrivateKey

    wanted = CreateOptions().platform if platform is None else platform
    try:
        specs.require_platform(wanted)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    found: BundleSpec
    if spec is not None:
        found = specs.load_spec(spec)
        found = found if version is None else found.model_copy(update={"version": version})
    else:
        found = specs.from_options(str(name), version, models, images, charts, files)
    options = CreateOptions(
        access=access,
        endpoint=endpoint,
        hub_ca=hub_ca,
        token=None if token_file is None else token_in(token_file),
        patience=waits,
        platform=specs.ALL_PLATFORMS if all_platforms else wanted,
        base=None if since is None else open_bundle(since),
        part_size=part_size,
        key=None if key is None else PrivateKey.load(key, passphrase_of(key, passphrase_file)),
    )
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        made = create(found, out, options, progress)
    context.obj.update(
        reason="Created",
        message=f"The bundle {made.name} {made.version} is in {made.path}: {made.blobs} blobs "
        f"({made.size} bytes){'' if made.base is None else ', a delta'}.",
        path=str(made.path),
        name=made.name,
        version=made.version,
        digest=str(made.index_digest),
        blobs=made.blobs,
        bytes=made.size,
        **({} if made.base is None else {"base": str(made.base)}),
    )
    if how != "none":
        for note in made.notes:
            click.echo(note, err=True)
    if key is None:
        click.echo("not signed: sign it before it leaves, or give --key", err=True)
    click.echo(json.dumps(context.obj) if how == "json" else str(context.obj["message"]))
