# SPDX-License-Identifier: Apache-2.0
"""A test double of KubeRay's operator, not KubeRay: real clusters and kind run the real one.

KubeRay cannot be installed from a package registry. On the embedded cluster this host process turns
RayServices into RayClusters, pods, Services and Serve applications, following KubeRay v1.7.0 in what others
can see: names, labels, commands, environment, probes, init containers, conditions, what it ignores, and that
it writes the whole object.

    names, quantities       constants and numbers
    cluster_spec, pods, services, suspension, conditions    pure: manifests and decisions
    ray_service, ray_cluster    one round of reconciling each
    identity                the service account that it speaks as
    api, serve              Kubernetes and Ray over HTTP
    controller              the loop
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dev.cluster import Cluster
    from dev.cluster.process import Process

ROOT = Path(__file__).resolve().parents[2]
PROCESS = "kuberay"


def start(cluster: Cluster) -> Process:
    """Runs the stand-in beside a cluster, unless it runs already; the cluster's `down` ends it."""
    command = [sys.executable, "-m", "dev.kuberay", "--kubeconfig", str(cluster.kubeconfig)]
    return cluster.run_process(PROCESS, command, env={"PYTHONPATH": str(ROOT)})
