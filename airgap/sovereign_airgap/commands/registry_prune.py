# SPDX-License-Identifier: Apache-2.0
"""The verb `registry prune`: removes the names of what nobody needs; by default it only says which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from sovereign_airgap.access import Access
from sovereign_airgap.errors import InvalidReference
from sovereign_airgap.options import FILE, OciReferenceType, registry_options, run_options
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.reference import OciReference

_LIST_BYTES = 4 * 1024 * 1024


@click.command("prune")
@click.argument("target", type=OciReferenceType())
@click.option("--keep", multiple=True, metavar="REF", help="In use: REPO@sha256:… or REPO:TAG (repeatable).")
@click.option("--keep-file", type=FILE, help="File with one such reference per line.")
@click.option("--keep-tags", multiple=True, metavar="GLOB", help="In use: all whose REPO:TAG matches.")
@click.option("--keep-loaded", is_flag=True, help="In use: what the bundles brought that are loaded now.")
@click.option(
    "--repositories",
    multiple=True,
    metavar="GLOB",
    default=["models/*"],
    show_default=True,
    help="Which repositories may lose something (repeatable).",
)
@click.option("--delete", is_flag=True, help="Remove. Without it, only the table is printed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@registry_options
@run_options
@click.pass_context
def registry_prune_command(
    context: click.Context,
    target: OciReference,
    keep: tuple[str, ...],
    keep_file: Path | None,
    keep_tags: tuple[str, ...],
    keep_loaded: bool,
    repositories: tuple[str, ...],
    delete: bool,
    as_json: bool,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Removes from TARGET (oci://HOST[/PREFIX]) every tag and manifest that nothing keeps.

    The bytes are freed by the registry's next garbage collection.
    """
    from rich.console import Console

    from sovereign_airgap import registry_prune

    if target.tag is not None or target.digest is not None:
        raise click.UsageError("TARGET is a place, as in oci://HOST or oci://HOST/PREFIX: no tag, no digest.")
    if not (keep or keep_file or keep_tags or keep_loaded):
        raise click.UsageError("Say what is in use, with --keep, --keep-file, --keep-tags or --keep-loaded.")
    try:
        kept = tuple(
            registry_prune.keep_reference(text, target.host) for text in (*keep, *_listed(keep_file))
        )
    except InvalidReference as error:
        raise click.UsageError(str(error)) from error
    options = registry_prune.PruneOptions(
        access=access,
        repositories=repositories,
        keep=kept,
        keep_tags=keep_tags,
        keep_loaded=keep_loaded,
        delete=delete,
        patience=waits,
    )
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        plan = registry_prune.prune(target, options, progress)
    if as_json:
        click.echo(json.dumps({"deleted": delete, **plan.as_json()}, indent=2))
    else:
        registry_prune.show(plan, delete, Console())
    for artifact in plan.untagged:
        click.echo(
            f"{artifact.repository}@{artifact.digest} is in use and has no tag: a garbage collection with "
            "deleteUntagged would remove it",
            err=True,
        )
    freed = f"{len(plan.doomed)} artifacts, {plan.freed} bytes"
    context.obj.update(
        reason="Pruned" if delete else "Planned",
        message=f"{freed} go with the next garbage collection." if delete else f"{freed} would go.",
        bytes=plan.freed,
        artifacts=len(plan.doomed),
    )
    click.echo(str(context.obj["message"]), err=as_json)


def _listed(path: Path | None) -> Iterator[str]:
    """References, one a line; empty lines and those that begin with # are none."""
    if path is None:
        return
    try:
        with path.open("rb") as file:
            text = file.read(_LIST_BYTES + 1).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}.") from error
    if len(text) > _LIST_BYTES:
        raise click.UsageError(f"Expected at most {_LIST_BYTES} bytes in {path}, found more.")
    for line in text.splitlines():
        if (words := line.strip()) and not words.startswith("#"):
            yield words
