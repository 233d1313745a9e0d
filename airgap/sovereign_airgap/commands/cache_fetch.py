# SPDX-License-Identifier: Apache-2.0
"""The verb `cache fetch`: what a fetch Job runs on its node."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovereign_airgap.access import Access
from sovereign_airgap.commands.cache import TENANT, root_option
from sovereign_airgap.digest import Digest
from sovereign_airgap.options import AMOUNT, DIGEST, OciReferenceType, registry_options, run_options
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.reference import OciReference
from sovereign_airgap.strict_json import Json

if TYPE_CHECKING:
    from sovereign_airgap.cache.fetch import FetchResult

# The result is a pod's termination message: 4 KiB, and ours ends at three.
_MAX_NAMED = 16
_NAMED_BYTES = 1100


@click.command("fetch")
@click.argument("reference", type=OciReferenceType())
@root_option
@click.option("--tenant", type=TENANT, required=True, help="Whose it is; tenants share nothing.")
@click.option("--config-only", is_flag=True, help="Everything but the weights.")
@click.option(
    "--verify",
    type=click.Choice(["changed", "always"]),
    default="changed",
    show_default=True,
    help="Hash what a marker does not vouch for as it lies there, or every file.",
)
@click.option(
    "--budget",
    type=AMOUNT,
    default=0,
    help="What the whole cache may take; 0, the default: what the disk has.",
)
@click.option("--reserve", type=AMOUNT, default=0, help="What stays free on the disk.")
@click.option("--keep", type=DIGEST, multiple=True, help="Wanted on this node: never evicted (repeatable).")
@click.option(
    "--parallel", type=click.IntRange(1, 16), default=4, show_default=True, help="Files fetched at a time."
)
@registry_options
@run_options
@click.pass_context
def cache_fetch_command(
    context: click.Context,
    reference: OciReference,
    root: Path,
    tenant: str,
    config_only: bool,
    verify: str,
    budget: int,
    reserve: int,
    keep: tuple[Digest, ...],
    parallel: int,
    access: Access,
    waits: Patience,
    how: str,
    progress_port: int | None,
) -> None:
    """Brings REFERENCE (oci://HOST/REPO@sha256:…) into the cache of a node; evicts if it must."""
    if reference.digest is None:
        raise click.UsageError("REFERENCE must be by digest, as in oci://HOST/REPO@sha256:…: tags can move.")
    from sovereign_airgap.cache.fetch import FetchOptions, fetch
    from sovereign_airgap.cache.layout import Cache
    from sovereign_airgap.cache.room import Limits
    from sovereign_airgap.pull import PullOptions

    # The pods that read it have users of their own, and whoever runs this by hand may have a strict mask.
    os.umask(0o022)
    pulling = PullOptions(access, config_only, verify == "always", waits, parallel)
    options = FetchOptions(pulling, Limits(budget, reserve), frozenset(keep))
    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        found = fetch(reference, Cache(root), tenant, options, progress)
    context.obj.update(_fetched(found))
    click.echo(str(context.obj["message"]))


def _fetched(found: FetchResult) -> dict[str, Json]:
    message = (
        f"{found.files} files ({found.size} bytes) are in {found.folder}: {found.fetched} bytes were "
        f"fetched, {found.linked} linked, {found.kept} were there."
    )
    if found.evicted:
        message += f" {len(found.evicted)} artifacts had to go."
    if found.repaired:
        message += f" {len(found.repaired)} files were damaged or did not belong there."
    return {
        "reason": "Fetched",
        "message": message,
        "digest": str(found.digest),
        "bytes": found.size,
        "files": found.files,
        "fetchedBytes": found.fetched,
        "linkedBytes": found.linked,
        "keptBytes": found.kept,
        "evicted": _bounded(found.evicted),
        "repaired": _bounded(ascii(path)[1:-1] for path in found.repaired),
        "seconds": round(found.seconds, 3),
    }


def _bounded(names: Iterable[str]) -> list[Json]:
    """The first of them, and how many more there are."""
    every = list(names)
    shown: list[Json] = []
    size = 0
    for name in every[:_MAX_NAMED]:
        size += len(name.encode("utf-8")) + 4
        if size > _NAMED_BYTES:
            break
        shown.append(name)
    more = len(every) - len(shown)
    return [*shown, f"and {more} more"] if more else shown
