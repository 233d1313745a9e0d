# SPDX-License-Identifier: Apache-2.0
"""The verb `probe listen`: the program of the canary and of a model's peer."""

from __future__ import annotations

import click

from sovereign_airgap.errors import Interrupted
from sovereign_airgap.probe.plan import DNS_PORT, TCP_PORT, UDP_PORT

_PORT = click.IntRange(1, 65535)


@click.command("listen")
@click.option("--tcp", type=_PORT, multiple=True, help="Answer connections here (repeatable).")
@click.option("--udp", type=_PORT, multiple=True, help="Answer datagrams here (repeatable).")
@click.option("--dns", type=_PORT, multiple=True, help="Answer DNS here, over UDP and TCP (repeatable).")
def probe_listen_command(tcp: tuple[int, ...], udp: tuple[int, ...], dns: tuple[int, ...]) -> None:
    """Answers whoever asks until SIGTERM, a few bytes each; by default on TCP and UDP 8443 and DNS 8053."""
    from sovereign_airgap.probe.ending import run_until_signalled
    from sovereign_airgap.probe.listen import Listener

    if not (tcp or udp or dns):
        tcp, udp, dns = (TCP_PORT,), (UDP_PORT,), (DNS_PORT,)
    try:
        listener = Listener(tcp, udp, dns)
        click.echo(f"listening on {', '.join(map(str, sorted(set(listener.ports))))}", err=True)
        run_until_signalled(listener.serve)
    except Interrupted:
        pass  # the only way in which it ends, and a good one
