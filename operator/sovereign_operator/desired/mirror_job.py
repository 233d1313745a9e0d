# SPDX-License-Identifier: Apache-2.0
"""The mirror Job: hub -> in-cluster registry, in the system namespace, with its own push credentials.

It is named by a hash of what it does, created and never patched. Its pod carries no model label, because it
has to reach the hub and the sealed set must not; it has no API token and mounts nothing but its credentials.
The chart holds the network policy of mirror pods; `mirror_exception.py` lets this one out while it runs.
"""

from __future__ import annotations

import hashlib
from typing import Final

from sovereign_airgap.reference import HubReference
from sovereign_operator.api import (
    ANNOTATION_MODEL,
    COMPONENT_MIRROR,
    LABEL_COMPONENT,
    LABEL_MIRROR_FOR,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
    SovereignModel,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.quantity import size
from sovereign_operator.desired.rendered import rendered_hash
from sovereign_operator.desired.sandbox import home_environment, pod_security, restricted
from sovereign_operator.values import Manifest

MIB: Final = 1024**2
PROGRESS_PORT: Final = 8090
RESULT_FILE: Final = "/dev/termination-log"
# The operator reads the result and decides when to try again, Kubernetes never does. A Job is created and
# never compared, so this zero may stand.
RETRIES_OF_A_JOB: Final = 0
# 3 TB at 35 MB/s; a mirror that makes no progress ends long before by itself.
DEADLINE_SECONDS: Final = 24 * 3600
# Longer than the longest backoff, so that a failed Job is still there to be read.
KEPT_SECONDS: Final = 2 * 3600
PUSH_FOLDER: Final = "/var/run/sovereign/push"
TOKEN_FOLDER: Final = "/var/run/sovereign/token"  # noqa: S105  (a folder)
REGISTRY_CA_FOLDER: Final = "/var/run/sovereign/registry-ca"
HUB_CA_FOLDER: Final = "/var/run/sovereign/hub-ca"


def mirror_job(model: SovereignModel, config: OperatorConfig) -> Manifest:
    """The Job that mirrors the model's commit. Raises ValueError for a source that is no hub repository."""
    labels = {
        "app.kubernetes.io/managed-by": "sovereign-operator",
        LABEL_COMPONENT: COMPONENT_MIRROR,
        LABEL_MIRROR_FOR: mirror_label(model),
        LABEL_OWNER: model.name,
        LABEL_OWNER_NAMESPACE: model.namespace,
    }
    spec: Manifest = {
        "backoffLimit": RETRIES_OF_A_JOB,
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": {ANNOTATION_MODEL: f"{model.namespace}/{model.name}"},
            },
            "spec": _pod(model, config),
        },
    }
    # The token's Secret is named after the Job, so the name comes from everything else.
    name = f"mirror-{rendered_hash({'for': [model.namespace, model.name, model.metadata.uid], 'spec': spec})}"
    secret = model.spec.source.hugging_face and model.spec.source.hugging_face.token_secret_ref
    if secret:
        _mount_token(spec["template"]["spec"], token_secret_name(name))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": config.system_namespace, "labels": labels},
        "spec": spec,
    }


def mirror_label(model: SovereignModel) -> str:
    """A label value for namespace and name together, which alone would be too long."""
    digest = hashlib.sha256(f"{model.namespace}/{model.name}".encode()).hexdigest()[:16]
    return f"{model.name}.{digest}"


def token_secret_name(job: str) -> str:
    """The Secret beside the Job that holds the hub's token under the key `token`."""
    return f"{job}-token"


def _arguments(model: SovereignModel, config: OperatorConfig) -> list[str]:
    source = model.spec.source.hugging_face
    if source is None:
        raise ValueError("Expected a huggingFace source to mirror, found an artifact.")
    hub = HubReference(source.repo, source.revision)
    arguments = ["mirror", str(hub), f"oci://{config.registry.writer}/{hub.default_repository()}"]
    arguments += [word for glob in source.include for word in ("--include", glob)]
    arguments += [word for glob in source.exclude for word in ("--exclude", glob)]
    arguments += ["--endpoint", config.external_sources.endpoint]
    if config.registry.plain_http:
        arguments.append("--plain-http")
    if config.registry.ca_config_map:
        arguments += ["--ca", f"{REGISTRY_CA_FOLDER}/ca.crt"]
    if config.external_sources.ca_config_map:
        arguments += ["--hub-ca", f"{HUB_CA_FOLDER}/ca.crt"]
    arguments += ["--docker-config", f"{PUSH_FOLDER}/config.json"]
    if source.token_secret_ref:
        arguments += ["--token-file", f"{TOKEN_FOLDER}/token"]
    arguments += ["--progress", "json", "--progress-port", str(PROGRESS_PORT), "--result-file", RESULT_FILE]
    return arguments


def _pod(model: SovereignModel, config: OperatorConfig) -> Manifest:
    push = {
        "secretName": config.registry.push_secret,
        "items": [{"key": ".dockerconfigjson", "path": "config.json"}],
    }
    volumes: list[Manifest] = [
        {"name": "home", "emptyDir": {"sizeLimit": size(64 * MIB)}},
        {"name": "push", "secret": push},
    ]
    mounts: list[Manifest] = [
        {"name": "home", "mountPath": "/home/sovereign"},
        {"name": "push", "mountPath": PUSH_FOLDER, "readOnly": True},
    ]
    authorities = (
        ("registry-ca", config.registry.ca_config_map, REGISTRY_CA_FOLDER),
        ("hub-ca", config.external_sources.ca_config_map, HUB_CA_FOLDER),
    )
    for name, config_map, folder in authorities:
        if config_map:
            volumes.append({"name": name, "configMap": {"name": config_map}})
            mounts.append({"name": name, "mountPath": folder, "readOnly": True})
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "volumes": volumes,
        "containers": [
            {
                "name": "mirror",
                "image": config.images.airgap,
                "imagePullPolicy": "IfNotPresent",
                "args": _arguments(model, config),
                "env": home_environment(),
                "ports": [{"name": "progress", "containerPort": PROGRESS_PORT}],
                "resources": {
                    "requests": {"cpu": "250m", "memory": size(256 * MIB)},
                    "limits": {"memory": size(512 * MIB)},
                },
                "securityContext": restricted(),
                "terminationMessagePath": RESULT_FILE,
                "terminationMessagePolicy": "File",
                "volumeMounts": mounts,
            }
        ],
    }


def _mount_token(pod: Manifest, secret: str) -> None:
    pod["volumes"].append({"name": "token", "secret": {"secretName": secret}})
    pod["containers"][0]["volumeMounts"].append(
        {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True}
    )
