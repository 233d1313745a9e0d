# SPDX-License-Identifier: Apache-2.0
"""The verb `install`: what `airgap/install` does once its environment is there."""

from __future__ import annotations

from pathlib import Path

import click

from sovereign_airgap.commands.bundle_load import bundle_load_command
from sovereign_airgap.commands.bundle_verify import bundle_verify_command
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.install.steps import STEPS
from sovereign_airgap.options import FILE
from sovereign_airgap.reference import OciReference

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("install")
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--key", "keys", type=FILE, multiple=True, required=True, help="A public key (repeatable).")
@click.option(
    "--threshold", type=click.IntRange(1), default=1, show_default=True, help="How many of the keys."
)
@click.option(
    "--work", type=_FOLDER, default="/var/lib/sovereign-airgap", show_default=True, help="What is kept."
)
@click.option("--step", "only", type=click.Choice(STEPS), multiple=True, help="Only this step (repeatable).")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--system-namespace", default="sovereign-system", show_default=True, help="The platform's own.")
@click.option("--models-namespace", "models", multiple=True, default=("models",), show_default=True,
              help="For models (repeatable).")  # fmt: skip
@click.option("--values", type=FILE, multiple=True, help="The site's values for the chart (repeatable).")
@click.option(
    "--registry-name", metavar="HOST", help="The registry's one name; default: that of its Service."
)
@click.option(
    "--registry-address", metavar="HOST:PORT", help="Where nodes find it; default: asked of the cluster."
)
@click.option(
    "--writer", metavar="HOST:PORT", help="Where to load; default: the Service, or a forwarded port."
)
@click.option("--docker-config", type=FILE, help="Login for the writer; default: the chart's own Secret.")
@click.option(
    "--ca", type=FILE, help="PEM file: the authority of the registry's certificate (it speaks TLS)."
)
@click.option("--certs-d", type=_FOLDER, default="/etc/containerd/certs.d", show_default=True,
              help="The folder that containerd's config_path names.")  # fmt: skip
@click.option("--sandbox-image", metavar="NAME", help="What containerd calls its pause image.")
@click.pass_context
def install_command(
    context: click.Context,
    bundle: Path,
    keys: tuple[Path, ...],
    threshold: int,
    work: Path,
    only: tuple[str, ...],
    dry_run: bool,
    system_namespace: str,
    models: tuple[str, ...],
    values: tuple[Path, ...],
    registry_name: str | None,
    registry_address: str | None,
    writer: str | None,
    docker_config: Path | None,
    ca: Path | None,
    certs_d: Path,
    sandbox_image: str | None,
) -> None:
    """Installs the platform from BUNDLE (a directory or parts): images onto this node, charts into the
    cluster, and the bundle into the cluster's registry. Every step may be repeated; nothing is done twice."""
    from sovereign_airgap.bundle.index import INDEX_BYTES, Index
    from sovereign_airgap.bundle.layout import INDEX, read
    from sovereign_airgap.bundle.opening import open_bundle
    from sovereign_airgap.bundle.signatures import signed_by
    from sovereign_airgap.install.cluster import Cluster
    from sovereign_airgap.install.node import Node
    from sovereign_airgap.install.platform import Platform
    from sovereign_airgap.install.programs import Programs
    from sovereign_airgap.install.steps import Installation, Wishes
    from sovereign_airgap.signing.keys import PublicKey

    name = registry_name or f"sovereign-registry.{system_namespace}.svc.cluster.local:5000"
    for host in (name, registry_address, writer):
        _require_host(host)
    reader = open_bundle(bundle)
    content = read(reader, INDEX, INDEX_BYTES)
    signed_by(reader, content, [PublicKey.load(key) for key in keys], threshold)

    def verify() -> str:
        context.invoke(bundle_verify_command, path=bundle, keys=keys, threshold=threshold)
        return "nothing is missing, nothing is surplus, every digest is right."

    def load(address: str, login: Path, output: Path) -> str:
        context.invoke(
            bundle_load_command, bundle=bundle, target=OciReference(address), keys=keys, threshold=threshold,
            require_signature=True, output=output, registry_name=name, namespace=models[0],
            plain_http=ca is None, ca=ca, docker_config=login,
        )  # fmt: skip
        return f"apply what is in {output / 'models'}."

    platform = Platform(reader, Index.parse(content), name)
    work = work.resolve()
    programs = Programs(platform, work / "bin")
    wishes = Wishes(work, models, values, ca, registry_address, writer, docker_config, sandbox_image)
    cluster = Cluster(programs, system_namespace)
    steps = Installation(platform, Node(programs, certs_d), cluster, wishes, verify, load).steps()
    chosen = [step for step in steps if not only or step.name in only]
    for step in chosen:
        click.echo(f"{step.name}: {step.says}")
        if not dry_run:
            click.echo(f"{step.name}: {step.run()}")
    done = ", ".join(step.name for step in chosen)
    message = f"These would be done: {done}." if dry_run else f"Done: {done}."
    context.obj.clear()
    context.obj.update(reason="Planned" if dry_run else "Installed", message=message)


def _require_host(name: str | None) -> None:
    try:
        if name is not None:
            OciReference(name)
    except InvalidReference as error:
        raise click.UsageError(str(error)) from error
