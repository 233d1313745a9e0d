# SPDX-License-Identifier: Apache-2.0
"""The verb `probe wait`: the first init container of every model pod."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from sovereign_airgap.probe.plan import InvalidPlan, require_host


def _host(context: click.Context, param: click.Parameter, value: str) -> str:
    try:
        require_host(value, f"--{param.name}")
    except InvalidPlan as error:
        raise click.BadParameter(str(error), context, param) from error
    return value


@click.command("wait")
@click.option("--canary", required=True, callback=_host, help="Address or full name that must be denied.")
@click.option("--peer", required=True, callback=_host, help="Address or full name that must answer.")
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=60, show_default=True, help="How long to wait."
)
@click.option(
    "--result-file",
    type=click.Path(path_type=Path),
    expose_value=False,  # the command line's end writes it, however the run ended
    help="Write the result here as JSON.",
)
@click.pass_context
def probe_wait_command(context: click.Context, canary: str, peer: str, seconds: float) -> None:
    """Waits until the canary is denied twice in a row while the peer answers; ends with 3 if it never is."""
    from sovereign_airgap.probe.ending import run_until_signalled
    from sovereign_airgap.probe.surroundings import Surroundings
    from sovereign_airgap.probe.wait import wait_sealed

    pod = Surroundings.of_pod(os.environ)
    took = run_until_signalled(partial(wait_sealed, canary, peer, seconds, pod))
    context.obj.update(
        reason="Sealed", message=f"The canary is denied and the peer answers, after {took:.1f} s."
    )
    click.echo(context.obj["message"])
