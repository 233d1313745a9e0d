# SPDX-License-Identifier: Apache-2.0
"""A pod that runs a model in one process, to compare its tokens with those of all ranks."""

from __future__ import annotations

import json

import yaml

from dev.demo import NAME
from dev.kubectl import Kubectl, Manifest
from dev.stack import MODELS


def single_rank_pod(kubectl: Kubectl, worker: Manifest, prompt: str) -> Manifest:
    """A pod that runs the same weights in one process: the worker's own image, volumes and init container."""
    spec = worker["spec"]
    container = spec["containers"][0]
    delivery = next(
        c for c in spec["initContainers"] if "pull" in [*c.get("command", []), *c.get("args", [])]
    )
    names = {v["name"] for v in spec["volumes"] if "emptyDir" in v}
    keep = [v for v in spec["volumes"] if v["name"] in names]
    arguments = _application_arguments(kubectl)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "single-rank", "namespace": MODELS},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": spec["securityContext"],
            "volumes": keep,
            "initContainers": [_stripped(delivery, names)],
            "containers": [
                {
                    **_stripped(container, names),
                    "name": "single-rank",
                    "command": ["python", "/opt/sovereign/dev/single_rank.py", json.dumps(arguments), prompt],
                    "args": ["--max-tokens", "16"],
                }
            ],
        },
    }


def _stripped(container: Manifest, volumes: set[str]) -> Manifest:
    """The parts of a running container that say what it runs, without its probes, ports and resources."""
    kept = ("name", "image", "command", "args", "securityContext")
    env = [e for e in container.get("env", []) if not e["name"].startswith(("RAY_", "FQ_RAY", "KUBERAY"))]
    mounts = [m for m in container.get("volumeMounts", []) if m["name"] in volumes]
    return {**{k: container[k] for k in kept if k in container}, "env": env, "volumeMounts": mounts}


def _application_arguments(kubectl: Kubectl) -> Manifest:
    service = kubectl.get("-n", MODELS, "rayservice", NAME)
    args = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert isinstance(args, dict)
    return args
