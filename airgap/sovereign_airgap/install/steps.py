# SPDX-License-Identifier: Apache-2.0
"""The installation as a list of steps: what each one does, in words, and the doing. Each may be repeated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from sovereign_airgap.bundle.chart_values import CRDS_CHART, OPERATOR_CHART
from sovereign_airgap.disk import explained
from sovereign_airgap.errors import InvalidSpec
from sovereign_airgap.install.cluster import READER, WRITER, Cluster
from sovereign_airgap.install.node import Node
from sovereign_airgap.install.platform import NodeImage, Platform

STEPS = ("verify", "images", "namespaces", "crds", "chart", "hosts", "load")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a site says about itself. `registry_address`, `writer` and `docker_config` are None where the
    cluster tells; `ca` is given where the registry speaks TLS."""

    work: Path
    models: tuple[str, ...]
    values: tuple[Path, ...] = ()
    ca: Path | None = None
    registry_address: str | None = None
    writer: str | None = None
    docker_config: Path | None = None
    sandbox: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """`says` is the plan's sentence; `run` returns the sentence about what was done."""

    name: str
    says: str
    run: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Installation:
    """`verify` and `load` are the verbs of the bundle, given by who has their options: `load` takes the
    registry's address, a docker config and the folder for the files that it writes."""

    platform: Platform
    node: Node
    cluster: Cluster
    wishes: Wishes
    verify: Callable[[], str]
    load: Callable[[str, Path, Path], str]

    @property
    def output(self) -> Path:
        """Where the values and the rewritten manifests are, in the end."""
        return self.wishes.work / "site"

    def steps(self) -> tuple[Step, ...]:
        """All of them, in their order; raises BundleLacks where the bundle cannot be installed."""
        index, registry = self.platform.index, self.platform.registry
        images = self.platform.node_images(self.wishes.sandbox)
        names = ", ".join(image.root.name for image in images) or "none"
        where = self.wishes.registry_address or "the Service's address"
        namespaces = ", ".join((self.cluster.namespace, *self.wishes.models))
        crds, operator = (self.platform.chart(name)[0] for name in (CRDS_CHART, OPERATOR_CHART))
        says = {
            "verify": f"hash everything in {self.platform.reader.describe} ({index.name} {index.version})",
            "images": f"put {len(images)} images into this node's containerd: {names}",
            "namespaces": f"make {namespaces} unless they are there",
            "crds": f"helm upgrade --install {CRDS_CHART} {crds} -n {self.cluster.namespace}",
            "chart": f"helm upgrade --install {OPERATOR_CHART} {operator} -n {self.cluster.namespace}, "
            "and wait until it runs",
            "hosts": f"write {self.node.certs / registry}: {registry} is at {where}",
            "load": f"load the bundle into the registry, and write manifests and values to {self.output}",
        }
        doing: dict[str, Callable[[], str]] = {
            "verify": self.verify,
            "images": lambda: self._images(images),
            "namespaces": self._namespaces,
            "crds": lambda: self._chart(CRDS_CHART, ()),
            "chart": self._operator,
            "hosts": self._hosts,
            "load": self._load,
        }
        return tuple(Step(name, says[name], doing[name]) for name in STEPS)

    def _images(self, images: tuple[NodeImage, ...]) -> str:
        missing = self.node.missing(images)
        for image in missing:
            self.node.take(self.platform.reader, image)
        return f"{len(missing)} images were brought, {len(images) - len(missing)} were there."

    def _namespaces(self) -> str:
        wanted = (self.cluster.namespace, *self.wishes.models)
        made = [name for name in wanted if not self.cluster.has_namespace(name)]
        for name in made:
            self.cluster.make_namespace(name, host_path=name == self.cluster.namespace and self._caches())
        return f"{', '.join(made) or 'none'} of {len(wanted)} had to be made."

    def _caches(self) -> bool:
        """Whether the site's values turn the node cache on, whose Jobs have hostPath volumes."""
        on = False
        for path in self.wishes.values:
            try:
                values = yaml.safe_load(path.read_bytes())
            except yaml.YAMLError as error:
                raise InvalidSpec(f"Expected values of a chart as YAML in {path}, found: {error}") from error
            cache = values.get("nodeCache") if isinstance(values, dict) else None
            if isinstance(cache, dict):
                on = bool(cache.get("enabled", on))  # as helm: the last file that says it
        return on

    def _chart(self, name: str, values: tuple[Path, ...]) -> str:
        version, archive = self.platform.chart(name)
        place = self._write(f"charts/{name}-{version}.tgz", archive)
        self.cluster.install(name, place, values)
        return f"{name} {version} is installed."

    def _operator(self) -> str:
        values = self.platform.chart_values()
        tree = json.dumps(values.tree, indent=1).encode()
        done = self._chart(OPERATOR_CHART, (self._write("values.json", tree), *self.wishes.values))
        return " ".join((done, *(f"Left to do: {note}" for note in values.notes)))

    def _hosts(self) -> str:
        address = self.wishes.registry_address or self.cluster.address(READER)
        changed = self.node.write_hosts(self.platform.registry, address, self.wishes.ca)
        return f"{', '.join(map(str, changed))} written." if changed else "it was as it should be."

    def _load(self) -> str:
        with self._writer() as address, self._login(address) as docker_config:
            return self.load(address, docker_config, self.output)

    @contextmanager
    def _writer(self) -> Iterator[str]:
        if self.wishes.writer is not None:
            yield self.wishes.writer
        else:
            with self.cluster.way_to(WRITER) as address:
                yield address

    @contextmanager
    def _login(self, address: str) -> Iterator[Path]:
        """A file for its owner only, gone with the block, unless the user has given one."""
        if self.wishes.docker_config is not None:
            yield self.wishes.docker_config
            return
        place = self.wishes.work / "docker-config.json"
        place.unlink(missing_ok=True)
        try:
            with explained(place):
                handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(self.cluster.login(address))
            yield place
        finally:
            place.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> Path:
        place = self.wishes.work / name
        with explained(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return place
