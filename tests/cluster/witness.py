# SPDX-License-Identifier: Apache-2.0
"""Pods of the witness, one static program that says what a pod can do (dev/go/witness)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dev.binaries import binary
from dev.cluster import Cluster
from dev.cluster.oci_layout import write_program_image
from dev.kubectl import Manifest

RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def push(cluster: Cluster, folder: Path) -> str:
    """The witness as an image in the node's registry; its reference by digest."""
    archive = folder / "witness.tar"
    write_program_image(archive, "witness", binary("witness"))
    digest_file = archive.with_suffix(".digest")
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"),
            *("--digestfile", str(digest_file)),
            *(f"oci-archive:{archive}", f"docker://{cluster.images}/witness:test"),
        ],
        check=True,
    )
    return f"{cluster.images}/witness@{digest_file.read_text().strip()}"


def a_pod(image: str, name: str = "web", **spec: object) -> Manifest:
    """A pod that serves HTTP on 8080, allowed under restricted pod security, with all three probes."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    container = {
        "name": "web",
        "image": image,
        "args": ["serve", ":8080"],
        "securityContext": RESTRICTED,
        "startupProbe": {**probe, "failureThreshold": 60},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2, **spec},
    }
