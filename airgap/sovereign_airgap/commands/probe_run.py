# SPDX-License-Identifier: Apache-2.0
"""The verb `probe run`: one run of a plan, in the sealed prober and in its unsealed control alike."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click

from sovereign_airgap.errors import DiskFailed
from sovereign_airgap.probe.plan import PLAN_BYTES, InvalidPlan, parse_plan


@click.command("run")
@click.option("--plan", "file", type=click.File("rb"), help="The plan as a JSON file; - reads stdin.")
@click.option("--plan-json", "text", help="The plan itself, instead of a file.")
@click.option("--result-file", type=click.Path(path_type=Path), help="Write the result here as JSON.")
def probe_run_command(file: BinaryIO | None, text: str | None, result_file: Path | None) -> None:
    """Tries every path of a plan and prints what became of each as JSON.

    Ends with 0 whatever was reached: what that means is decided by whoever has the control's result too.
    """
    if (file is None) is (text is None):
        raise click.UsageError("Give the plan once: --plan FILE or --plan-json TEXT.")
    try:
        plan = parse_plan(file.read(PLAN_BYTES + 1) if file is not None else text or "")
    except InvalidPlan as error:
        raise click.UsageError(str(error)) from error
    from sovereign_airgap.probe.ending import run_until_signalled
    from sovereign_airgap.probe.run import run_plan
    from sovereign_airgap.probe.surroundings import Surroundings

    rendered = run_until_signalled(partial(run_plan, plan, Surroundings.of_pod(os.environ))).render()
    if result_file is not None:
        # Here and not at the command line's end, whose result files have no paths.
        try:
            result_file.write_text(rendered + "\n", encoding="ascii")
        except OSError as error:
            raise DiskFailed(
                f"Expected to write the result to {result_file}, but {error.strerror}: make it writable."
            ) from error
    click.echo(rendered)
