# SPDX-License-Identifier: Apache-2.0
"""The verb `bundle split`: a bundle's directory becomes parts that fit on media."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovereign_airgap.options import SIZE, run_options
from sovereign_airgap.progress import Progress, served, shown


@click.command("split")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Folder for the parts and their list.",
)  # fmt: skip
@click.option(
    "--part-size",
    type=SIZE,
    default="4000MiB",
    show_default=True,
    help="Bytes of a part; the default fits FAT32.",
)
@click.option(
    "--consume", is_flag=True, help="Free DIRECTORY's room while parts are written, then remove it."
)
@run_options
@click.pass_context
def bundle_split_command(
    context: click.Context,
    directory: Path,
    out: Path,
    part_size: int,
    consume: bool,
    how: str,
    progress_port: int | None,
) -> None:
    """Cuts the bundle DIRECTORY into NAME-VERSION.part-00001 …, to be carried and copied again one by one.
    Sign it before: the parts hold the signatures."""
    from sovereign_airgap.bundle.split import split

    progress = Progress()
    with served(progress, progress_port), shown(progress, how):
        found = split(directory, out, part_size, consume, progress)
    context.obj.update(
        reason="Split", message=f"{found.parts} parts ({found.size} bytes), {found.kept} were there.",
        path=str(found.path), digest=str(found.index), parts=found.parts, bytes=found.size,
    )  # fmt: skip
    click.echo(json.dumps(context.obj) if how == "json" else str(found.path))
