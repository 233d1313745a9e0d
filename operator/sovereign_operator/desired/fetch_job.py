# SPDX-License-Identifier: Apache-2.0
"""The fetch Job: in-cluster registry -> one node's cache, in the system namespace. The only writer of the
cache.

One for each tenant namespace, node and digest, and its name is the lock: whoever wants the same there meets
the same Job. It is created and never patched. When it has completed it stays as the record that the node
has the weights. Its pod is the operator's one pod with a hostPath volume and the user root, without a
capability and without an API token; it carries no model label, because it has to reach the registry.

A scrub is the same Job under another name that hashes everything again and repairs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    ANNOTATION_CONFIG_ONLY,
    ANNOTATION_MODEL,
    ANNOTATION_NODE,
    COMPONENT_FETCH,
    LABEL_ARTIFACT,
    LABEL_COMPONENT,
    LABEL_NODE,
    LABEL_OWNER_NAMESPACE,
    SovereignModel,
)
from sovereign_operator.config import NodeCacheConfig, OperatorConfig
from sovereign_operator.desired.quantity import size
from sovereign_operator.desired.sandbox import HOME, offline_environment, root_pod_security, root_restricted
from sovereign_operator.desired.surroundings import on_nodes
from sovereign_operator.fetches import label_of
from sovereign_operator.values import Manifest

MIB: Final = 1024**2
PROGRESS_PORT: Final = 8090
RESULT_FILE: Final = "/dev/termination-log"
CACHE: Final = "/cache"
REGISTRY_CA_FOLDER: Final = "/var/run/sovereign/registry-ca"
# The operator reads the result and decides when to try again, Kubernetes never does.
RETRIES_OF_A_JOB: Final = 0
# 3 TB at 35 MB/s; a fetch that makes no progress ends long before by itself.
DEADLINE_SECONDS: Final = 24 * 3600
# As long as the record is there nobody asks again, and nothing is hashed again before it is due.
KEPT_SECONDS: Final = 7 * 24 * 3600
LONGEST_SECONDS: Final = 2**31 - 1
# What other models have on the node and must not lose; more than these do not fit a node.
MOST_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Fetch:
    """What one Job brings where. `reference`: models/org/name@sha256:…, without a host."""

    namespace: str
    node: str
    reference: str
    config_only: bool = False

    @property
    def digest(self) -> str:
        return self.reference.partition("@")[2]

    @property
    def name(self) -> str:
        return f"fetch-{self._hash}"

    @property
    def scrub_name(self) -> str:
        return f"scrub-{self._hash}"

    @property
    def _hash(self) -> str:
        """Nothing else goes in: two models that want the same have to meet."""
        text = "\n".join((self.namespace, self.node, self.digest, str(self.config_only)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fetch_job(
    fetch: Fetch,
    model: SovereignModel,
    config: OperatorConfig,
    cache: NodeCacheConfig,
    *,
    keep: Iterable[str] = (),
    verify: str = "changed",
) -> Manifest:
    """`model`: whose look creates it. `keep`: digests that must stay on this node."""
    return _job(fetch.name, fetch, model, config, cache, keep, verify)


def scrub_job(
    fetch: Fetch,
    model: SovereignModel,
    config: OperatorConfig,
    cache: NodeCacheConfig,
    *,
    keep: Iterable[str] = (),
) -> Manifest:
    """Hashes what a fetch brought, and brings anew what is damaged."""
    return _job(fetch.scrub_name, fetch, model, config, cache, keep, "always")


def _job(
    name: str,
    fetch: Fetch,
    model: SovereignModel,
    config: OperatorConfig,
    cache: NodeCacheConfig,
    keep: Iterable[str],
    verify: str,
) -> Manifest:
    labels = {
        "app.kubernetes.io/managed-by": "sovereign-operator",
        LABEL_COMPONENT: COMPONENT_FETCH,
        LABEL_OWNER_NAMESPACE: fetch.namespace,
        LABEL_ARTIFACT: label_of(fetch.digest),
        LABEL_NODE: hashlib.sha256(fetch.node.encode()).hexdigest()[:16],
    }
    marks = {
        ANNOTATION_ARTIFACT: fetch.reference,
        ANNOTATION_NODE: fetch.node,
        ANNOTATION_MODEL: f"{model.namespace}/{model.name}",
    }
    if fetch.config_only:
        marks[ANNOTATION_CONFIG_ONLY] = "true"
    arguments = _arguments(fetch, config, cache, keep, verify)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": config.system_namespace,
            "labels": labels,
            "annotations": dict(marks),
        },
        "spec": {
            "backoffLimit": RETRIES_OF_A_JOB,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            # Twice the interval, or the record would go when its scrub is due and nothing ever be scrubbed.
            "ttlSecondsAfterFinished": min(
                max(KEPT_SECONDS, 2 * cache.scrub_interval_seconds), LONGEST_SECONDS
            ),
            "template": {
                "metadata": {"labels": dict(labels), "annotations": dict(marks)},
                "spec": _pod(fetch, model, config, cache, arguments),
            },
        },
    }


def _arguments(
    fetch: Fetch, config: OperatorConfig, cache: NodeCacheConfig, keep: Iterable[str], verify: str
) -> list[str]:
    arguments = ["cache", "fetch", f"oci://{config.registry.host}/{fetch.reference}"]
    arguments += ["--root", CACHE, "--tenant", fetch.namespace]
    if fetch.config_only:
        arguments.append("--config-only")
    arguments += ["--verify", verify]
    if cache.budget_bytes:
        arguments += ["--budget", str(cache.budget_bytes)]
    arguments += ["--reserve", str(cache.reserve_bytes)]
    # Its own is kept by itself.
    for digest in sorted(set(keep) - {fetch.digest})[:MOST_KEPT]:
        arguments += ["--keep", digest]
    if config.registry.plain_http:
        arguments.append("--plain-http")
    if config.registry.ca_config_map:
        arguments += ["--ca", f"{REGISTRY_CA_FOLDER}/ca.crt"]
    arguments += ["--progress", "json", "--progress-port", str(PROGRESS_PORT), "--result-file", RESULT_FILE]
    return arguments


def _pod(
    fetch: Fetch,
    model: SovereignModel,
    config: OperatorConfig,
    cache: NodeCacheConfig,
    arguments: list[str],
) -> Manifest:
    volumes: list[Manifest] = [
        {"name": "home", "emptyDir": {"sizeLimit": size(64 * MIB)}},
        {"name": "cache", "hostPath": {"path": cache.path, "type": "DirectoryOrCreate"}},
    ]
    mounts: list[Manifest] = [{"name": "home", "mountPath": HOME}, {"name": "cache", "mountPath": CACHE}]
    if config.registry.ca_config_map:
        volumes.append({"name": "registry-ca", "configMap": {"name": config.registry.ca_config_map}})
        mounts.append({"name": "registry-ca", "mountPath": REGISTRY_CA_FOLDER, "readOnly": True})
    # By the node's name and not by its label for hosts, which is another where names are long.
    this_node = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [fetch.node]}]}
    only_there = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [this_node]}}
    # Nothing else goes to a cordoned node, but a pod of the model that is there already may wait for this.
    cordoned = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": root_pod_security(),
        "affinity": {"nodeAffinity": only_there},
        "tolerations": [*on_nodes(model).get("tolerations", ()), cordoned],
        "volumes": volumes,
        "containers": [
            {
                "name": "fetch",
                "image": config.images.airgap,
                "imagePullPolicy": "IfNotPresent",
                "args": arguments,
                "env": offline_environment(),
                "ports": [{"name": "progress", "containerPort": PROGRESS_PORT}],
                "resources": {
                    "requests": {"cpu": "100m", "memory": size(128 * MIB)},
                    "limits": {"memory": size(512 * MIB)},
                },
                "securityContext": root_restricted(),
                "terminationMessagePath": RESULT_FILE,
                "terminationMessagePolicy": "File",
                "volumeMounts": mounts,
            }
        ],
    }
