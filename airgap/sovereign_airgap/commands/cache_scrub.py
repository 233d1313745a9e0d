# SPDX-License-Identifier: Apache-2.0
"""The verb `cache scrub`: the node's cache hashed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovereign_airgap.commands.cache import TENANT, root_option
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import CacheCorrupt
from sovereign_airgap.options import DIGEST, run_options
from sovereign_airgap.progress import Progress, served, shown

if TYPE_CHECKING:
    from sovereign_airgap.cache.scrub import Examined

_NAMED_ENTRIES = 4
_NAMED_FILES = 4


@click.command("scrub")
@root_option
@click.option("--tenant", type=TENANT, help="Only this tenant's.")
@click.option("--manifest", type=DIGEST, help="Only this artifact.")
@click.option("--parallel", type=click.IntRange(1, 16), help="Files hashed at a time; default: the cores.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@run_options
@click.pass_context
def cache_scrub_command(
    context: click.Context,
    root: Path,
    tenant: str | None,
    manifest: Digest | None,
    parallel: int | None,
    as_json: bool,
    how: str,
    progress_port: int | None,
) -> None:
    """Hashes every complete artifact of a node's cache again, whether pods use it or not.

    A damaged one is withdrawn: no new pod starts on it, and the next fetch repairs it. Ends with 3 then.
    """
    from sovereign_airgap.cache.layout import Cache
    from sovereign_airgap.cache.scrub import State, scrub, show

    progress = Progress()
    cache = Cache(root)
    with served(progress, progress_port), shown(progress, how):
        found = scrub(cache, progress, tenant, manifest, parallel)
    if as_json:
        click.echo(json.dumps({"entries": [each.as_json() for each in found]}, indent=2))
    else:
        from rich.console import Console

        show(found, Console())
    damaged = [each for each in found if each.state is State.DAMAGED]
    if damaged:
        raise CacheCorrupt(_told(root, damaged))
    sound = [each for each in found if each.state is State.SOUND]
    size, skipped = sum(each.size for each in sound), len(found) - len(sound)
    context.obj.update(
        reason="Scrubbed",
        message=f"{len(sound)} artifacts ({size} bytes) in {root} are what their manifests say"
        + (f"; {skipped} were skipped because they are being written." if skipped else "."),
        bytes=size,
        entries=len(sound),
        skipped=skipped,
    )


def _told(root: Path, damaged: list[Examined]) -> str:
    entries = "; ".join(_named(each) for each in damaged[:_NAMED_ENTRIES])
    more = len(damaged) - _NAMED_ENTRIES
    return (
        f"Expected {root} to hold what the manifests say, but these are damaged: {entries}"
        + (f"; and {more} more artifacts" if more > 0 else "")
        + ". No new pod starts on them; the next fetch repairs them."
    )


def _named(each: Examined) -> str:
    names = [ascii(damage.path)[1:-1][:100] for damage in each.damages]
    more = len(names) - _NAMED_FILES
    files = ", ".join(names[:_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
    return f"{each.entry} ({files})"
