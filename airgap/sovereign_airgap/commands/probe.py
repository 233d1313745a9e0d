# SPDX-License-Identifier: Apache-2.0
"""The group `probe`: what proves from inside the cluster that nothing gets out."""

from __future__ import annotations

import click

from sovereign_airgap.commands.probe_listen import probe_listen_command
from sovereign_airgap.commands.probe_run import probe_run_command
from sovereign_airgap.commands.probe_wait import probe_wait_command


@click.group("probe")
def probe_group() -> None:
    """Tries from inside a pod what its network lets out; the operator starts these verbs, people need not."""


probe_group.add_command(probe_listen_command)
probe_group.add_command(probe_run_command)
probe_group.add_command(probe_wait_command)
