# SPDX-License-Identifier: Apache-2.0
"""The embedded cluster: a real Kubernetes without Docker, in one folder, for tests and the demo.

`up(name)` starts the control plane without root; `up(name, node=True)` adds a node on which pods really run.
"""

from __future__ import annotations

from dev.cluster.errors import ClusterError
from dev.cluster.lifecycle import down, status, up
from dev.cluster.state import Cluster, load

__all__ = ["Cluster", "ClusterError", "down", "load", "status", "up"]
