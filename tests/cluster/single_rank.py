# SPDX-License-Identifier: Apache-2.0
"""A pod that runs a model in one process, to compare its tokens with those of all ranks."""

from __future__ import annotations

import json

import yaml

from dev.demo import NAME
from dev.kubectl import Kubectl, Manifest
from dev.stack import MODELS, SYSTEM


def single_rank_pod(kubectl: Kubectl, worker: Manifest, prompt: str) -> Manifest:
    """A pod of the worker's image that pulls the same weights for itself and runs them in one process.

    It is nobody's: without a model's labels no policy seals it, and it may not mount the node's cache.
    """
    spec = worker["spec"]
    container = spec["containers"][0]
    (weights,) = (one for one in spec["initContainers"] if one["name"] == "weights")
    reference = kubectl.get("-n", MODELS, "smodel", NAME)["status"]["artifact"]["reference"]
    pull = ["pull", f"oci://sovereign-registry.{SYSTEM}.svc:5000/{reference}", "/weights", "--plain-http"]
    names = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "single-rank", "namespace": MODELS},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": spec["securityContext"],
            "volumes": [
                *(volume for volume in spec["volumes"] if volume["name"] in names),
                {"name": "weights", "emptyDir": {}},
            ],
            "initContainers": [{**_stripped(weights, names), "args": pull}],
            "containers": [
                {
                    **_stripped(container, names),
                    "name": "single-rank",
                    "command": [
                        "python",
                        "/opt/sovereign/dev/single_rank.py",
                        json.dumps(_application_arguments(kubectl)),
                        prompt,
                    ],
                    "args": ["--max-tokens", "16"],
                }
            ],
        },
    }


def _stripped(container: Manifest, volumes: set[str]) -> Manifest:
    """The parts of a running container that say what it runs, without its probes, ports and resources.

    Of its mounts those of `volumes` stay, and /weights is the pod's own folder.
    """
    kept = ("name", "image", "command", "args", "securityContext")
    env = [e for e in container.get("env", []) if not e["name"].startswith(("RAY_", "FQ_RAY", "KUBERAY"))]
    mounts = [m for m in container.get("volumeMounts", []) if m["name"] in volumes]
    mounts.append({"name": "weights", "mountPath": "/weights"})
    return {**{k: container[k] for k in kept if k in container}, "env": env, "volumeMounts": mounts}


def _application_arguments(kubectl: Kubectl) -> Manifest:
    service = kubectl.get("-n", MODELS, "rayservice", NAME)
    args = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert isinstance(args, dict)
    return args
