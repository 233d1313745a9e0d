# SPDX-License-Identifier: Apache-2.0
"""The pods of the probe: a sealed peer that answers, a sealed prober that tries, an unsealed control that
tries the same, and the container that holds a model pod back until the seal is in force on its node.

Prober and control run one program with one list of targets; their results come in the termination message.
The peer stays: model pods ask it before they start.
"""

from __future__ import annotations

import hashlib
from typing import Final

from sovereign_airgap.probe.plan import NODE, TCP_PORT, UDP_PORT, ProbePlan, Protocol, Target
from sovereign_operator.api import (
    ANNOTATION_MODEL,
    ANNOTATION_PROBE_RUN,
    COMPONENT_CONTROL,
    COMPONENT_PEER,
    COMPONENT_PROBER,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
    SovereignModel,
)
from sovereign_operator.config import API_SERVER, OWN_NODE, OperatorConfig
from sovereign_operator.desired.quantity import size
from sovereign_operator.desired.rendered import with_hash
from sovereign_operator.desired.sandbox import USER, offline_environment, pod_security, restricted
from sovereign_operator.desired.surroundings import on_nodes, on_worker_nodes, resolver
from sovereign_operator.values import Manifest

MIB: Final = 1024**2
RESULT_FILE: Final = "/dev/termination-log"
KUBELET_PORT: Final = 10250
API_SERVER_PORT: Final = 443
# The operator gives up first and tells what the pods waited for; this ends what it could not end.
GRACE_SECONDS: Final = 60
# Long enough for people to read the logs of the last runs.
KEPT_SECONDS: Final = 600
# How long a model pod waits for the seal before it fails and is started again.
WAIT_SECONDS: Final = 60
# The container that does.
SEALED: Final = "sealed"
RETRIES_OF_A_JOB: Final = 0
MANAGED: Final = {"app.kubernetes.io/managed-by": "sovereign-operator"}


def peer_name(model: SovereignModel) -> str:
    """Of the peer's pod and its Service."""
    return f"{model.name}-peer"


def peer_host(model: SovereignModel, config: OperatorConfig) -> str:
    return f"{peer_name(model)}.{model.namespace}.svc.{config.cluster_domain}"


def peer_service(model: SovereignModel) -> Manifest:
    """A name for the peer without an address of its own: policies see the pod's."""
    ports = (("tcp", "TCP", TCP_PORT), ("udp", "UDP", UDP_PORT))
    metadata = _owned(model, peer_name(model))
    metadata["labels"] = metadata["labels"] | {LABEL_COMPONENT: COMPONENT_PEER}
    return with_hash(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": "None",
                "selector": {LABEL_MODEL: model.name, LABEL_COMPONENT: COMPONENT_PEER},
                "ports": [
                    {"name": name, "protocol": protocol, "port": port, "targetPort": port}
                    for name, protocol, port in ports
                ],
            },
        }
    )


def peer_pod(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """Answers whoever the policies let through: the pods of its own model."""
    container = _container(
        config, "peer", ["probe", "listen", "--tcp", str(TCP_PORT), "--udp", str(UDP_PORT)]
    )
    container["ports"] = [
        {"name": "tcp", "containerPort": TCP_PORT, "protocol": "TCP"},
        {"name": "udp", "containerPort": UDP_PORT, "protocol": "UDP"},
    ]
    container["readinessProbe"] = {"tcpSocket": {"port": TCP_PORT}, "periodSeconds": 5}
    metadata = _owned(model, peer_name(model))
    metadata["labels"] = MANAGED | {LABEL_MODEL: model.name, LABEL_COMPONENT: COMPONENT_PEER}
    spec = _pod(container) | resolver(model, config) | on_nodes(model)
    return with_hash({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def prober_job(model: SovereignModel, config: OperatorConfig, run: str) -> Manifest:
    """Tries every way out from inside the seal, on a node that the workers could have."""
    plan = _plan(model, config, run, sealed=True)
    labels = MANAGED | {LABEL_MODEL: model.name, LABEL_COMPONENT: COMPONENT_PROBER}
    spec = _pod(_trying(config, "prober", plan)) | resolver(model, config) | on_worker_nodes(model, config)
    metadata = _owned(model, f"{model.name}-prober-{run[:8]}")
    metadata["labels"] = metadata["labels"] | {LABEL_COMPONENT: COMPONENT_PROBER}
    return _job(metadata, labels, spec, run, config)


def control_job(model: SovereignModel, config: OperatorConfig, run: str) -> Manifest:
    """Tries the same outside the seal, with the cluster's own resolver. Never carries the model label."""
    plan = _plan(model, config, run, sealed=False)
    labels = MANAGED | {
        LABEL_COMPONENT: COMPONENT_CONTROL,
        LABEL_OWNER: model.name,
        LABEL_OWNER_NAMESPACE: model.namespace,
    }
    metadata = {"name": f"control-{run}", "namespace": config.system_namespace, "labels": labels}
    spec = _pod(_trying(config, "control", plan)) | on_worker_nodes(model, config)
    job = _job(metadata, labels, spec, run, config)
    job["spec"]["template"]["metadata"]["annotations"][ANNOTATION_MODEL] = f"{model.namespace}/{model.name}"
    return job


def waiting_container(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """A model pod's first init container: rules may arrive after the pod, so it waits until they have."""
    canary = config.probe.canary or ""
    arguments = ["probe", "wait", "--canary", canary, "--peer", peer_host(model, config)]
    arguments += ["--seconds", str(WAIT_SECONDS), "--result-file", RESULT_FILE]
    return _container(config, SEALED, arguments) | _reporting()


def targets(config: OperatorConfig) -> tuple[Target, ...]:
    """What both pods try, besides the canary and the peer."""
    server = Target(
        API_SERVER, Protocol.TCP, f"kubernetes.default.svc.{config.cluster_domain}", API_SERVER_PORT
    )
    node = Target(OWN_NODE, Protocol.TCP, NODE, KUBELET_PORT)
    return (*(each.target() for each in config.probe.targets), server, node)


def new_run(model: SovereignModel, purpose: str, last: str) -> str:
    """16 hex digits for the run after `last`: an operator that starts anew finds what it had begun."""
    text = "\n".join((model.metadata.uid, purpose, last))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(model: SovereignModel, config: OperatorConfig, run: str, *, sealed: bool) -> ProbePlan:
    """Enforcement may lag behind the prober's start; the control has nothing to wait for and no peer."""
    return ProbePlan(
        run=run,
        timeout_seconds=config.probe.timeout_seconds,
        settle_seconds=config.probe.settle_seconds if sealed else 0,
        canary=config.probe.canary,
        peer=peer_host(model, config) if sealed else None,
        targets=targets(config),
    )


def _job(metadata: Manifest, labels: Manifest, spec: Manifest, run: str, config: OperatorConfig) -> Manifest:
    marks = {ANNOTATION_PROBE_RUN: run}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | {"annotations": dict(marks)},
        "spec": {
            "backoffLimit": RETRIES_OF_A_JOB,
            "activeDeadlineSeconds": config.probe.deadline_seconds + GRACE_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {"labels": labels, "annotations": dict(marks)},
                "spec": spec | {"restartPolicy": "Never"},
            },
        },
    }


def _owned(model: SovereignModel, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": model.namespace,
        "labels": MANAGED | {LABEL_OWNER: model.name},
        "ownerReferences": [model.owner_reference()],
    }


def _pod(container: Manifest) -> Manifest:
    # A safe sysctl, allowed by `restricted`: without it a pod cannot try ICMP, which is no proof of denial.
    ping = {"name": "net.ipv4.ping_group_range", "value": f"{USER} {USER}"}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security() | {"sysctls": [ping]},
        "containers": [container],
    }


def _trying(config: OperatorConfig, name: str, plan: ProbePlan) -> Manifest:
    arguments = ["probe", "run", "--plan-json", plan.render(), "--result-file", RESULT_FILE]
    container = _container(config, name, arguments) | _reporting()
    container["env"] = [
        _field("NODE_IP", "status.hostIPs"),
        _field("NODE_NAME", "spec.nodeName"),
        *container["env"],
    ]
    return container


def _container(config: OperatorConfig, name: str, arguments: list[str]) -> Manifest:
    return {
        "name": name,
        "image": config.images.airgap,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": offline_environment(),
        "resources": {
            "requests": {"cpu": "10m", "memory": size(64 * MIB)},
            "limits": {"memory": size(128 * MIB)},
        },
        "securityContext": restricted(),
    }


def _reporting() -> Manifest:
    return {"terminationMessagePath": RESULT_FILE, "terminationMessagePolicy": "File"}


def _field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
