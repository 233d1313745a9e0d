# SPDX-License-Identifier: Apache-2.0
"""Kubernetes events: what happened, once, for people who watch. Conditions say what is.

An event is posted only after the write that it tells of succeeded. Its name is a hash of what it says, so
a restarted operator does not repeat itself, and losing one is never an error.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime
from typing import Final

from sovereign_operator.api import API_VERSION, KIND
from sovereign_operator.cluster import Cluster, ClusterError, Conflict
from sovereign_operator.values import Manifest
from sovereign_operator.world import Happening

logger = logging.getLogger(__name__)

COMPONENT: Final = "sovereign-operator"


def event(model: Manifest, happening: Happening, now: datetime) -> Manifest:
    metadata = model["metadata"]
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    words = "\n".join((metadata["uid"], happening.reason, happening.message, happening.about))
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(words.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": happening.kind,
        "reason": happening.reason,
        "message": happening.message[:1000],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


async def post(cluster: Cluster, model: Manifest, happenings: tuple[Happening, ...], now: datetime) -> None:
    """Posts what happened; a namespace that is being deleted takes no events, which is nobody's loss."""
    for happening in happenings:
        try:
            await cluster.create(event(model, happening, now))
        except Conflict:
            continue  # told already
        except ClusterError as error:
            logger.info("event %s was not posted: %s", happening.reason, error)
