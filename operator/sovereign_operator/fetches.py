# SPDX-License-Identifier: Apache-2.0
"""What is seen of weights on their way to nodes: frozen values, and whose business a fetch Job is.

A fetch Job belongs to no model: all models of a namespace that serve the same digest share it, and it is
found by namespace and digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sovereign_operator.api import (
    ANNOTATION_MODEL,
    ANNOTATION_RETRY,
    LABEL_ARTIFACT,
    LABEL_OWNER_NAMESPACE,
)
from sovereign_operator.values import FetchProgress, Manifest

# Hex digits of a digest that fit a label.
LABEL_DIGITS: Final = 32
# How many nodes a status lists; beyond that nobody can tell which they are.
LISTED_NODES: Final = 64


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another model that has its weights on nodes, as its object says; `nodes` with those of its pods."""

    namespace: str
    name: str
    digests: frozenset[str]  # what it serves and what it is about to
    nodes: frozenset[str] = frozenset()
    suspended: bool = False
    asked: str = ""  # the value of its annotation sovereign.dev/retry

    @classmethod
    def of(cls, body: Manifest) -> Neighbour:
        metadata, nodes = body["metadata"], _member(body, "status", "delivery", "nodes")
        names = (_member(node, "name") for node in (nodes if isinstance(nodes, list) else ()))
        return cls(
            namespace=str(metadata.get("namespace")),
            name=str(metadata["name"]),
            digests=digests_of(body),
            nodes=frozenset(str(name) for name in names if name),
            suspended=bool(_member(body, "spec", "suspend")),
            asked=str((metadata.get("annotations") or {}).get(ANNOTATION_RETRY) or ""),
        )

    def keeps_on(self, node: str) -> bool:
        """Whether what it has there must not be evicted for another model."""
        return not self.suspended and (node in self.nodes or len(self.nodes) >= LISTED_NODES)


@dataclass(frozen=True, slots=True)
class Fetches:
    """What one look saw. `jobs`: those of the model's digests, whoever made them, and those that it made."""

    jobs: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    progress: Mapping[str, FetchProgress] = field(default_factory=dict)  # by the pod's uid
    neighbours: tuple[Neighbour, ...] = ()
    # Accelerators of each node that workers of other models have.
    taken: Mapping[str, int] = field(default_factory=dict)


def digests_of(body: Mapping[str, Any]) -> frozenset[str]:
    """The digests that a model serves and is about to serve, as its status says."""
    found = (_member(body, "status", "artifact", "digest"), _member(body, "status", "servingArtifact"))
    return frozenset(str(digest) for digest in found if digest)


def has_cache(body: Mapping[str, Any]) -> bool:
    """Whether the model wants its weights on nodes, and is there to stay."""
    mode = _member(body, "spec", "delivery", "mode")
    return mode == "nodeCache" and "deletionTimestamp" not in body["metadata"]


def _member(body: Any, *path: str) -> Any:
    """A member of an object that another version may have written; None where it is not there."""
    for name in path:
        body = body.get(name) if isinstance(body, Mapping) else None
    return body


def label_of(digest: str) -> str:
    """The label value under which the Jobs of a digest are found."""
    return digest.removeprefix("sha256:")[:LABEL_DIGITS]


def fetch_key(body: Mapping[str, Any]) -> tuple[str, str]:
    """Of a fetch Job or its pod: the namespace that it is for, and the label of its digest."""
    labels = body["metadata"].get("labels") or {}
    return str(labels.get(LABEL_OWNER_NAMESPACE) or ""), str(labels.get(LABEL_ARTIFACT) or "")


def made_by(job: Manifest) -> str:
    """Namespace and name of the model whose look created the Job."""
    return str((job["metadata"].get("annotations") or {}).get(ANNOTATION_MODEL, ""))


def concerning(
    jobs: Iterable[Manifest], namespace: str, name: str, digests: Iterable[str]
) -> tuple[Manifest, ...]:
    """The Jobs of a namespace that a model has something to do with, by name."""
    labels, maker = {label_of(digest) for digest in digests}, f"{namespace}/{name}"
    found = (job for job in jobs if fetch_key(job)[1] in labels or made_by(job) == maker)
    return tuple(sorted(found, key=lambda job: str(job["metadata"]["name"])))
