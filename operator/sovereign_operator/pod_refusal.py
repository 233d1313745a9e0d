# SPDX-License-Identifier: Apache-2.0
"""Pods that the API server refused KubeRay: there is no pod then that could say why, only a condition of its
RayCluster. Pure.
"""

from __future__ import annotations

from typing import Final

from sovereign_operator import reasons
from sovereign_operator.world import Stage, World, condition_of, is_dying, name_of

# KubeRay's words, since 1.3.
FAILED: Final = "ReplicaFailure"
NOT_CREATED: Final = ("FailedCreateHeadPod", "FailedCreateWorkerPod")


def pods_refused(world: World) -> Stage | None:
    """What the API server said to KubeRay about a pod of this model; None where it took them all."""
    for cluster in sorted(world.ray_clusters, key=name_of):
        failure = condition_of(cluster, FAILED)
        created = failure.get("status") != "True" or failure.get("reason") not in NOT_CREATED
        if not (created or is_dying(cluster)):
            words = f"{name_of(cluster)}: {failure.get('message') or failure['reason']}"
            return Stage("False", reasons.PODS_REFUSED, words[:800])
    return None
