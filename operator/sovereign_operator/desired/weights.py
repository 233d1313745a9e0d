# SPDX-License-Identifier: Apache-2.0
"""How a pod comes to its weights: it pulls them itself, or it finds them in its node's cache.

ephemeral: an init container pulls into a folder of the pod and checks every digest while it writes.
nodeCache: a sidecar waits until a fetch Job has brought them to the node, checks them, and holds them for
as long as the pod lives, so that they are not evicted. The Ray container sees the one entry and cannot
write it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sovereign_operator.api import ANNOTATION_ARTIFACT, SovereignModel
from sovereign_operator.config import NodeCacheConfig, OperatorConfig
from sovereign_operator.desired.quantity import rounded_up, size
from sovereign_operator.desired.sandbox import HOME, offline_environment, restricted
from sovereign_operator.values import Artifact, Manifest

MIB: Final = 1024**2
GIB: Final = 1024**3
WEIGHTS: Final = "/weights"
# The container that delivers or holds them; its last words are what DeliveryFailed says.
CONTAINER: Final = "weights"
RESULT_FILE: Final = "/dev/termination-log"
CA_FOLDER: Final = "/var/run/sovereign/registry-ca"
# Without a limit, weights fill a node's disk. Blocks and folders take a little more than the bytes.
SLACK_PERCENT: Final = 105
CONFIG_SIZE: Final = GIB

TENANT: Final = "/cache"
HELD_FILE: Final = f"{HOME}/weights-held"
# A pod that lands on a node without them starts over after this, in s; the operator fetches them meanwhile.
WAIT_SECONDS: Final = 120
PROBE_SECONDS: Final = 2
# Hashing a large model takes a while; `cache hold` ends by itself where there is nothing to wait for.
LONGEST_CHECK_SECONDS: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Weights:
    """What a pod template gets: an init container, the Ray container's mount, and what both need."""

    container: Manifest
    mount: Manifest
    volumes: list[Manifest]
    annotations: dict[str, str] = field(default_factory=dict)


def weights_of(
    model: SovereignModel, artifact: Artifact, config: OperatorConfig, *, config_only: bool
) -> Weights:
    """Raises ValueError where the operator's configuration has no cache on nodes and the model wants one."""
    if model.spec.delivery.mode == "ephemeral":
        return _pulled(artifact, config, config_only)
    if config.node_cache is None:
        raise ValueError("Expected nodeCache in the operator's configuration, found none.")
    return _held(model, artifact, config, config.node_cache, config_only)


def _pulled(artifact: Artifact, config: OperatorConfig, config_only: bool) -> Weights:
    arguments = ["pull", f"oci://{config.registry.host}/{artifact.reference}", WEIGHTS]
    mounts: list[Manifest] = [
        {"name": "weights", "mountPath": WEIGHTS},
        {"name": "home", "mountPath": HOME},
    ]
    whole = rounded_up(artifact.bytes * SLACK_PERCENT // 100 + 64 * MIB, 64 * MIB)
    limit = CONFIG_SIZE if config_only else whole
    volumes: list[Manifest] = [{"name": "weights", "emptyDir": {"sizeLimit": size(limit)}}]
    if config_only:
        arguments.append("--config-only")
    if config.registry.plain_http:
        arguments.append("--plain-http")
    if config.registry.ca_config_map:
        arguments += ["--ca", f"{CA_FOLDER}/ca.crt"]
        mounts.append({"name": "registry-ca", "mountPath": CA_FOLDER, "readOnly": True})
        volumes.append({"name": "registry-ca", "configMap": {"name": config.registry.ca_config_map}})
    arguments += ["--result-file", RESULT_FILE]
    mount = {"name": "weights", "mountPath": WEIGHTS, "readOnly": True}
    return Weights(_container(config, arguments, mounts), mount, volumes)


def _held(
    model: SovereignModel,
    artifact: Artifact,
    config: OperatorConfig,
    cache: NodeCacheConfig,
    config_only: bool,
) -> Weights:
    arguments = ["cache", "hold", "--tenant-dir", TENANT, "--manifest", artifact.digest]
    arguments += ["--held-file", HELD_FILE]
    if config_only:
        arguments.append("--config-only")
    arguments += ["--verify", model.spec.delivery.verify, "--seconds", str(WAIT_SECONDS)]
    arguments += ["--result-file", RESULT_FILE]
    # The tenant's whole folder: the entry may not be there yet, and what is not there cannot be mounted.
    mounts: list[Manifest] = [
        {"name": "cache", "mountPath": TENANT, "readOnly": True},
        {"name": "home", "mountPath": HOME},
    ]
    container = _container(config, arguments, mounts) | {
        "restartPolicy": "Always",
        "startupProbe": {
            "exec": {"command": ["test", "-e", HELD_FILE]},
            "periodSeconds": PROBE_SECONDS,
            "failureThreshold": LONGEST_CHECK_SECONDS // PROBE_SECONDS,
        },
    }
    # What mounts this starts after the sidecar has found the entry complete.
    mount = {
        "name": "cache",
        "mountPath": WEIGHTS,
        "subPath": artifact.digest.replace(":", "-"),
        "readOnly": True,
    }
    claim = {"claimName": cache.claim, "readOnly": True}
    volumes: list[Manifest] = [{"name": "cache", "persistentVolumeClaim": claim}]
    return Weights(container, mount, volumes, {ANNOTATION_ARTIFACT: artifact.reference})


def _container(config: OperatorConfig, arguments: list[str], mounts: list[Manifest]) -> Manifest:
    return {
        "name": CONTAINER,
        "image": config.images.airgap,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": offline_environment(),
        "resources": {
            "requests": {"cpu": "100m", "memory": size(128 * MIB)},
            "limits": {"memory": size(512 * MIB)},
        },
        "securityContext": restricted(),
        "terminationMessagePath": RESULT_FILE,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
