# SPDX-License-Identifier: Apache-2.0
"""docs/airgap.md, walked as it is written: two models that share a shard, from a hub to an answer.

A cluster of its own, empty and gone afterwards, because the page installs what `make demo` installs by other
means; so this module comes before those that share one (one node cluster at a time on a machine). The serving
image, 5.5 GB, is not in the bundle: its name leads to the registry that the embedded node had before. All
other images of the platform's pods have names that only the bundle gave to this node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dev import kuberay, stack, tiny_moe
from dev.binaries import binary
from dev.cluster import Cluster, down, runtime, up
from dev.cluster.node import impossible
from dev.cluster.process import awaited
from dev.demo import NAME, ask
from dev.hub import HubServer
from dev.images import build_and_push
from dev.kubectl import Kubectl, is_true
from tests.cluster.walkthrough import Command, commands, walk

# The images are built here where nothing is cached.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/airgap.md").read_text(encoding="utf-8")
CARRIED = ("operator", "airgap", "registry", "coredns", "pause")
TUNED = "sovereign-demo/tiny-moe-tuned"
REGISTRY = f"sovereign-registry.{stack.SYSTEM}.svc.cluster.local:5000"
SECONDS = 1000.0


@dataclass(frozen=True)
class Sides:
    """The two sides of the gap, and what is between them."""

    cluster: Cluster
    kubectl: Kubectl
    folder: Path
    hub: HubServer

    @property
    def connected(self) -> Path:
        return self.folder / "connected"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    @property
    def medium(self) -> Path:
        return self.folder / "medium"

    def environment(self, path: str) -> dict[str, str]:
        """What the page asks the reader to fill in."""
        kept = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY")
        mine = {name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")}
        return mine | {
            "PATH": path,
            "HUB": self.hub.endpoint,
            "MODEL": f"{stack.DEMO_REPO}@{self.hub.commit(stack.DEMO_REPO)}",
            "TUNED": f"{TUNED}@{self.hub.commit(TUNED)}",
            "IMAGES": self.cluster.images,
            "ACCESS": "--plain-http",
            "MEDIUM": str(self.medium),
            "TRUSTED": str(self.folder / "trusted"),
            "SITE": str(self.site / "kept"),
            "CERTS_D": str(runtime.folder(self.cluster) / "hosts"),
        }

    def walk(self, heading: str) -> dict[str, str]:
        """Runs the commands below a heading where the page says; returns what each said."""
        inside = heading == "On the other side"
        if inside:
            # Nothing but the system: no .venv, and helm comes with the bundle.
            environment = self.environment(f"{self.site / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin")
            environment |= {
                "KUBECONFIG": str(self.cluster.kubeconfig),
                "CONTAINERD_ADDRESS": str(runtime.socket(self.cluster)),
            }
        else:
            venv = Path(sys.executable).parent
            environment = self.environment(f"{venv}:{os.environ['PATH']}")
        folder = self.site if inside else self.connected
        return {one.text: walk(one, folder, environment, SECONDS) for one in below(heading)}


def below(heading: str) -> list[Command]:
    found = [command for command in commands(PAGE) if command.heading == heading]
    assert found, f"docs/airgap.md has no commands below {heading!r}"
    return found


@pytest.fixture(scope="module")
def empty_cluster() -> Iterator[Cluster]:
    """A cluster with a node that has none of the bundle's images.

    SOVEREIGN_KEEP=1 leaves it running; then run this module alone, because the others want a node, too.
    """
    if reason := impossible():
        pytest.skip(reason)
    name = f"airgap-{uuid.uuid4().hex[:6]}"
    try:
        cluster = up(name, node=True)
        forget_platform(cluster)
        kuberay.start(cluster)
        yield cluster
        forget_platform(cluster)  # what containerd has unpacked goes on to the next cluster; these must not
    finally:
        if os.environ.get("SOVEREIGN_KEEP"):
            sys.stderr.write(f"\nkept: end it with `python -m dev cluster down --name {name}`\n")
        else:
            down(name)


def images_of_the_platform(cluster: Cluster) -> list[str]:
    """What a bundle has put on the node, under whichever registry's name."""
    listed = runtime.ctr(cluster, "images", "list", "--quiet").stdout.split()
    return [name for name in listed if name.partition("/")[2].startswith("sovereign/")]


def forget_platform(cluster: Cluster) -> None:
    if names := images_of_the_platform(cluster):
        runtime.ctr(cluster, "images", "delete", *names)
    assert images_of_the_platform(cluster) == []


@pytest.fixture(scope="module")
def sides(empty_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("gap")
    for name in ("connected", "medium", "trusted", "site/bin"):
        (folder / name).mkdir(parents=True)
    hub = folder / "hub"
    tiny_moe.write(hub / stack.DEMO_REPO, seed=1)
    tiny_moe.write(hub / TUNED, seed=1, last_seed=2)
    with HubServer(hub) as server:
        made = Sides(empty_cluster, Kubectl(tuple(empty_cluster.kubectl)), folder, server)
        prepare_connected(made)
        prepare_site(made)
        yield made


def prepare_connected(sides: Sides) -> None:
    """A checkout, the images under their released names, helm for the other side, and one manifest."""
    images = build_and_push([*CARRIED, "serving-cpu"], sides.cluster.images, lambda _: None)
    for name in CARRIED:
        released = f"docker://{sides.cluster.images}/sovereign/{name}:0.1.0"
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        command = ("skopeo", "copy", "--quiet", "--preserve-digests", *plain, f"docker://{images[name]}")
        subprocess.run([*command, released], check=True)
    for name in ("airgap", "charts", "locks", "operator", "serving"):
        shutil.copytree(ROOT / name, sides.connected / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, sides.connected / name)
    (sides.connected / "bin").mkdir()
    shutil.copy2(binary("helm"), sides.connected / "bin/helm")
    manifest = stack.example(NAME, images, sides.hub.commit(stack.DEMO_REPO))
    del manifest["spec"]["delivery"]  # the page leaves it as it is by default; the journey has a node cache
    (sides.connected / "model.yaml").write_text(yaml.safe_dump(manifest))


def prepare_site(sides: Sides) -> None:
    """ctr, kubectl, a Python without packages, and what only this site knows of the chart's values."""
    for name in ("ctr", "kubectl"):
        (sides.site / "bin" / name).symlink_to(binary(name))
    bare = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    (sides.site / "bin/python3").write_text(f'#!/bin/sh\nexec {bare} -I "$@"\n')
    (sides.site / "bin/python3").chmod(0o755)
    values = {
        **stack.site_values(stack.embedded_target(sides.cluster)),
        "productLabel": stack.PRODUCT_LABEL,
        "registry": {"persistence": {"enabled": False}},
        "resolver": {"replicas": 1},
        "resyncSeconds": 10,
    }
    (sides.site / "values.yaml").write_text(yaml.safe_dump(values))


# --- the page, in its order


def test_a_bundle_of_two_models_carries_the_shared_shard_once(sides: Sides) -> None:
    sides.walk("On the connected side")
    index = json.loads((sides.connected / "bundle/index.json").read_text())
    models = [root for root in index["manifests"] if root["annotations"]["dev.sovereign.kind"] == "model"]
    assert len(models) == 2
    blobs = sides.connected / "bundle/blobs/sha256"
    layers = [json.loads((blobs / root["digest"][7:]).read_text())["layers"] for root in models]
    shards = [
        {layer["digest"] for layer in one if layer["mediaType"].endswith("weight.v1.raw")} for one in layers
    ]
    assert [len(one) for one in shards] == [2, 2]
    assert len(shards[0] & shards[1]) == 1
    assert len(list(sides.medium.glob("site-1.part-*"))) > 1


def test_a_damaged_part_is_refused_by_name_and_copied_again(sides: Sides) -> None:
    said = sides.walk("On the way")
    refused = next(text for command, text in said.items() if command.endswith('echo "exit $?"'))
    sentence = next(line for line in refused.splitlines() if line.startswith("DigestMismatch: "))
    assert {word.strip(":") for word in sentence.split() if ".part-" in word} == {"site-1.part-00002"}


def test_the_platform_runs_from_the_bundle_and_the_model_answers(sides: Sides) -> None:
    shutil.rmtree(sides.connected)  # and whatever it could still be reached through
    sides.walk("On the other side")
    answer = ask(sides.kubectl, "What is a mixture of experts?")
    assert answer.model == NAME
    assert answer.tokens > 0
    model = sides.kubectl.get("-n", stack.MODELS, "smodel", NAME)
    assert list(model["spec"]["source"]) == ["artifact"]


def test_the_platforms_images_came_with_the_bundle(sides: Sides) -> None:
    pods = sides.kubectl.items("-n", stack.SYSTEM, "pods")
    images = {one["image"] for pod in pods for one in pod["spec"]["containers"]}
    assert images
    assert all(image.startswith(f"{REGISTRY}/sovereign/") for image in images)
    assert awaited(lambda: _all_ready(sides.kubectl), 120, interval=1.0)


def _all_ready(kubectl: Kubectl) -> bool:
    pods = kubectl.items("-n", stack.SYSTEM, "pods")
    running = [pod for pod in pods if pod["status"]["phase"] != "Succeeded"]  # the probe's control has ended
    return all(is_true(pod, "Ready") for pod in running)


def test_both_models_are_in_the_registry_of_the_site(sides: Sides) -> None:
    loaded = json.loads((sides.site / "kept/site/loaded.json").read_text())
    references = {row["now"].partition("@")[0] for row in loaded["references"] if row["kind"] == "model"}
    assert references == {f"models/{stack.DEMO_REPO}", f"models/{TUNED}"}
    assert len(loaded["bundle"]["signedBy"]) == 1


def test_the_node_pulls_from_the_registry_by_its_one_name(sides: Sides) -> None:
    """Nothing but hosts.toml leads there: the image is taken off the node first."""
    pause = next(
        name
        for name in images_of_the_platform(sides.cluster)
        if name.startswith(f"{REGISTRY}/sovereign/pause@")
    )
    runtime.ctr(sides.cluster, "images", "delete", pause)
    container = {
        "name": "pause",
        "image": pause,
        "imagePullPolicy": "Always",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pulled", "namespace": "default"},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
        },
    }
    sides.kubectl.apply(pod)
    sides.kubectl("wait", "pod/pulled", "--for=condition=Ready", "--timeout=60s")
    sides.kubectl("delete", "pod", "pulled", "--wait=false")
