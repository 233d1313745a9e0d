# SPDX-License-Identifier: Apache-2.0
"""The charts as the API server would get them: rendered by the real helm, parsed, found by kind and name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.paths import cache_root

ROOT = Path(__file__).resolve().parents[3]
CHARTS = ROOT / "charts"
DIGEST_VALUES = CHARTS / "sovereign-operator" / "ci" / "digest-values.yaml"
NAMESPACE = "sovereign-system"
POD_OWNERS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")

Manifest = dict[str, Any]


def built(name: str) -> Path:
    """The program from the cache or PATH; unit tests do not compile for minutes, so they skip without it."""
    found = sorted((cache_root() / "bin").glob(f"{name}-*/{name}"), key=lambda path: path.stat().st_mtime)
    if found:
        return found[-1]
    if on_path := shutil.which(name):
        return Path(on_path)
    pytest.skip(f"{name} is not built: run `python -m dev binaries {name}`")


@dataclass(frozen=True)
class Rendered:
    """All manifests of one rendering."""

    manifests: tuple[Manifest, ...]

    def one(self, kind: str, name: str, namespace: str | None = None) -> Manifest:
        [found] = [
            m
            for m in self.of(kind)
            if m["metadata"]["name"] == name and namespace in (None, m["metadata"].get("namespace"))
        ]
        return found

    def of(self, kind: str) -> list[Manifest]:
        return [m for m in self.manifests if m["kind"] == kind]

    def pod_specs(self) -> Iterator[tuple[str, Manifest]]:
        """Name and pod spec of everything that makes pods."""
        for manifest in self.manifests:
            if manifest["kind"] in POD_OWNERS:
                spec = manifest["spec"]
                if manifest["kind"] == "CronJob":
                    spec = spec["jobTemplate"]["spec"]
                yield manifest["metadata"]["name"], spec["template"]["spec"]

    def config(self) -> str:
        text = self.one("ConfigMap", "sovereign-operator-config")["data"]["config.yaml"]
        assert isinstance(text, str)
        return text


def helm(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(built("helm")), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def render(
    chart: str = "sovereign-operator",
    values: Mapping[str, Any] | None = None,
    apis: tuple[str, ...] = (),
) -> Rendered:
    """`apis` are group/version/Kind that the cluster is said to have beside Kubernetes' own."""
    return _render(chart, json.dumps(values or {}, sort_keys=True), apis)


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says to somebody who sets these values; fails when it takes them."""
    done = _template("sovereign-operator", json.dumps(values), ())
    assert done.returncode, "helm took values that it should refuse"
    return done.stderr


@cache
def _render(chart: str, values: str, apis: tuple[str, ...]) -> Rendered:
    done = _template(chart, values, apis)
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(m for m in yaml.load_all(done.stdout, Loader=_UniqueKeys) if m))


def _template(chart: str, values: str, apis: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    defaults = ["--values", str(DIGEST_VALUES)] if chart == "sovereign-operator" else []
    return helm(
        "template",
        chart,
        str(CHARTS / chart),
        "--namespace",
        NAMESPACE,
        *defaults,
        *(f"--api-versions={api}" for api in apis),
        "--values",
        "-",
        stdin=values,
    )


class _UniqueKeys(yaml.SafeLoader):
    """A key that a template writes twice is an error, as it is for the API server's strict validation."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"duplicate keys at {node.start_mark}"
        return super().construct_mapping(node, deep)
