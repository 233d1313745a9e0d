# SPDX-License-Identifier: Apache-2.0
"""What the demo and the cluster journeys need on a cluster: images, KubeRay, the hub double, the charts.

Each step is idempotent, so a second call on the same cluster only looks.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import yaml

from dev.kubectl import Kubectl, Manifest

if TYPE_CHECKING:
    from dev.cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
SYSTEM, MODELS, HUB = "sovereign-system", "models", "demo-hub"
DEMO_REPO = "sovereign-demo/tiny-moe"
PRODUCT_LABEL = "sovereign.dev/accelerator-product"
HUB_TOKEN = "demo-token"  # what the hub double knows as signed in; no secret
HUB_ENDPOINT = f"http://hub.{HUB}.svc.cluster.local:8000"
CHART_IMAGES = ("operator", "airgap", "registry", "coredns")
IMAGES = (*CHART_IMAGES, "serving-cpu", "demo-hub")
SEALED = {"sovereign.dev/sealed": "true"}
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
# Fetch pods have a hostPath volume; the chart's admission policies hold this namespace instead.
LETS_FETCH = RESTRICTED | {"pod-security.kubernetes.io/enforce": "privileged"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A cluster to install on. `cluster` is None where it is not ours to end."""

    kubectl: Kubectl
    helm: tuple[str, ...]
    registry: str  # host:port that this machine pushes images to and the nodes pull them from
    kubeconfig_hint: str
    cluster: Cluster | None


@dataclass(frozen=True)
class Stack:
    """A cluster with the product on it. `images` maps an image's name to its digest-pinned reference."""

    kubectl: Kubectl
    target: Target
    images: dict[str, str]
    revisions: dict[str, str]  # label of a revision in the hub double -> 40-hex commit


def target(kind: str, report: Report, name: str = "sovereign") -> Target:
    """The cluster to install on: ours, started if need be, or the current context if that was asked for."""
    if kind == "current":
        return _current_context()
    if kind == "kind":
        from dev.cluster import kind as kind_cluster

        return kind_cluster.target(name, report)
    from dev import cluster as embedded

    report("embedded cluster with a node")
    cluster = embedded.up(name, node=True, progress=report)
    report("API and node are ready")
    return embedded_target(cluster)


def embedded_target(cluster: Cluster) -> Target:
    return Target(
        kubectl=Kubectl(tuple(cluster.kubectl)),
        helm=(str(cluster.helm), "--kubeconfig", str(cluster.kubeconfig)),
        registry=cluster.images,
        kubeconfig_hint='eval "$(.venv/bin/python -m dev cluster env)"',
        cluster=cluster,
    )


def _current_context() -> Target:
    registry = os.environ.get("DEMO_REGISTRY", "")
    if not registry:
        raise RuntimeError(
            "CLUSTER=current needs DEMO_REGISTRY=host:port, a registry that this machine can push to and the "
            "nodes pull from; none was given."
        )
    return Target(Kubectl(("kubectl",)), ("helm",), registry, "# the current context", None)


def remove(kind: str, report: Report, name: str = "sovereign") -> None:
    """Undo `target` and `install`: end our cluster, or take our releases and namespaces off another's."""
    if kind == "embedded":
        from dev import cluster as embedded

        embedded.down(name, progress=report)
        return
    if kind == "kind":
        from dev.cluster import kind as kind_cluster

        kind_cluster.down(name, report)
        return
    kubectl = Kubectl(("kubectl",))
    report("deleting the demo's namespaces")
    kubectl("delete", "namespace", MODELS, "--ignore-not-found", "--timeout=300s", timeout=320)
    kubectl("delete", "namespace", HUB, SYSTEM, "--ignore-not-found", "--timeout=300s", timeout=320)
    report("the nodes keep what they have in /var/lib/sovereign/cache, a few MB")


def namespaces(kubectl: Kubectl, *names: str, sealed: Sequence[str] = (MODELS,)) -> None:
    """Create namespaces labelled for restricted pod security, as they would be in production.

    Those in `sealed` carry the label that puts them under the chart's admission policies, too. The platform's
    own only warns, as docs/nodecache.md asks for.
    """
    kubectl.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": name,
                    "labels": (LETS_FETCH if name == SYSTEM else RESTRICTED)
                    | (SEALED if name in sealed else {}),
                },
            }
            for name in names
        )
    )


def install_hub(kubectl: Kubectl, image: str) -> dict[str, str]:
    """Run the hub double in the cluster with two revisions of the tiny model; return label -> commit."""
    kubectl.apply(*_hub_manifests(image))
    kubectl("-n", HUB, "rollout", "status", "deployment/hub", "--timeout=180s", timeout=200)
    with kubectl.port_forward(HUB, "svc/hub", 8000) as address:
        return {
            label: httpx2.get(f"{address}/api/models/{DEMO_REPO}/revision/{label}", timeout=20).json()["sha"]
            for label in ("first", "second")
        }


def _hub_manifests(image: str) -> list[Manifest]:
    container = {
        "image": image,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "srv", "mountPath": "/srv/hub"}],
    }
    write = [
        {
            **container,
            "name": f"write-{label}",
            "command": ["python3.11", "-m", "dev.tiny_moe", f"/srv/hub/{DEMO_REPO}/@{label}", "--seed", seed],
        }
        for label, seed in (("first", "1"), ("second", "2"))
    ]
    serve = {
        **container,
        "name": "hub",
        "command": ["python3.11", "-m", "dev.hub", "/srv/hub"],
        "args": ["--host", "0.0.0.0", "--port", "8000", "--token", HUB_TOKEN],
        "ports": [{"name": "api", "containerPort": 8000}, {"name": "cdn", "containerPort": 8001}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    labels = {"app.kubernetes.io/name": "hub"}
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": write,
        "containers": [serve],
        "volumes": [{"name": "srv", "emptyDir": {}}],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "hub", "namespace": HUB},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "hub", "namespace": HUB},
            "spec": {
                "selector": labels,
                "ports": [{"name": "api", "port": 8000}, {"name": "cdn", "port": 8001}],
            },
        },
    ]


def install_charts(target: Target, images: dict[str, str], values: Manifest | None = None) -> None:
    """helm upgrade --install of both charts, from this repository, with `values` on top of the demo's."""
    _helm(target, "sovereign-crds", {})
    site = {**site_values(target), **cache_values(target)}
    _helm(target, "sovereign-operator", {**demo_values(images), **site, **(values or {})})
    ours = ("-l", "app.kubernetes.io/part-of=sovereign")
    for name in target.kubectl("-n", SYSTEM, "get", "deployments", *ours, "-o", "name").split():
        target.kubectl("-n", SYSTEM, "rollout", "status", name, "--timeout=180s", timeout=200)


def demo_values(images: dict[str, str]) -> Manifest:
    return {
        "images": {name: images[name] for name in CHART_IMAGES},
        "watchNamespaces": [MODELS],
        "externalSources": {"allowed": True, "endpoint": HUB_ENDPOINT, "extraPorts": [8001]},
        "productLabel": PRODUCT_LABEL,
        "registry": {"persistence": {"enabled": False}},
        "resolver": {"replicas": 1},
        "admission": {"registries": sorted({image.partition("/")[0] for image in images.values()})},
    }


def site_values(target: Target) -> Manifest:
    """What only this cluster's site knows of the chart's values.

    The embedded one has its API server on a port of its own, and an outside of ours to try. On any other
    nothing outside is tried: an address that means nothing here is somebody's there.
    """
    if target.cluster is None:
        return {"probe": {"targets": []}}
    from dev import outside

    return {
        "networkPolicies": {"apiServer": {"ports": [443, 6443, target.cluster.api_port]}},
        "probe": {"targets": outside.PROBE_TARGETS},
    }


def cache_values(target: Target) -> Manifest:
    """A small node cache. On the embedded node it lies in the cluster's own folder, and goes with it."""
    cache: Manifest = {"enabled": True, "budget": "2Gi", "reserve": "256Mi"}
    if target.cluster is not None:
        cache["path"] = str(target.cluster.state_dir / "node" / "cache")
    return {"nodeCache": cache}


def _helm(target: Target, chart: str, values: Manifest) -> None:
    release = ("upgrade", "--install", chart, str(ROOT / "charts" / chart), "--namespace", SYSTEM)
    done = subprocess.run(
        [*target.helm, *release, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"helm could not install {chart}: {done.stderr.strip()[-1500:]}")


def example(name: str, images: dict[str, str], revision: str) -> Manifest:
    """The checked-in example with the two values that only this machine knows: commit and image digest."""
    manifest: Manifest = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    manifest["spec"]["source"]["huggingFace"]["revision"] = revision
    manifest["spec"]["serving"]["image"] = images["serving-cpu"]
    return manifest


def install(target: Target, report: Report, values: Manifest | None = None) -> Stack:
    """Bring the whole product onto a cluster; `values` of the operator's chart on top of the demo's."""
    from dev.images import build_and_push

    images = build_and_push(list(IMAGES), target.registry, report)
    namespaces(target.kubectl, SYSTEM, MODELS, HUB)
    if target.cluster is not None:
        from dev import kuberay

        report("KubeRay stand-in")
        kuberay.start(target.cluster)
    report("hub double with two revisions of a tiny random MoE")
    revisions = install_hub(target.kubectl, images["demo-hub"])
    report("charts")
    install_charts(target, images, values)
    report("operator and registry run")
    return Stack(target.kubectl, target, images, revisions)
