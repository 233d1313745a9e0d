# SPDX-License-Identifier: Apache-2.0
"""What the watches have seen, by the SovereignModel that it belongs to. Reads only, no requests.

kopf keeps these indices from its watch streams; `handlers.py` fills them, `observe.py` reads them. A thing
that is missing here may only not have been seen yet: before it is judged absent, `observe.py` asks the API
server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
)
from sovereign_operator.fetches import Neighbour, concerning, digests_of, has_cache, label_of
from sovereign_operator.foreign_policies import opened_by
from sovereign_operator.values import Manifest, NodeFacts, accelerators_of

# Namespace and name of a SovereignModel: the key of the work queue.
Key = tuple[str, str]
# kopf's index: a key to the objects stored under it.
Index = Mapping[Any, Iterable[Manifest]]


def plain(body: Mapping[str, Any]) -> Manifest:
    """The object as a dict of its own, without the bookkeeping of field managers, which is larger than the
    rest.
    """
    copy: Manifest = json.loads(json.dumps(dict(body)))
    copy["metadata"].pop("managedFields", None)
    return copy


def key_of(body: Mapping[str, Any]) -> Key:
    """The key of a model itself."""
    return str(body["metadata"]["namespace"]), str(body["metadata"]["name"])


def owner_of(body: Mapping[str, Any]) -> Key:
    """The model that a child belongs to, from its labels."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    name = labels.get(LABEL_OWNER) or labels.get(LABEL_MODEL) or ""
    return str(labels.get(LABEL_OWNER_NAMESPACE) or metadata.get("namespace") or ""), str(name)


def policy_key(body: Mapping[str, Any]) -> Key:
    """The model that a policy seals, in its own namespace whatever its labels say of others; a policy that is
    none of ours has no name in its key. Ours carry no component: those of mirrors do, and are no seal."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    name = "" if LABEL_COMPONENT in labels else labels.get(LABEL_OWNER) or ""
    return str(metadata.get("namespace") or ""), str(name)


@dataclass
class Indices:
    """The live indices; empty until the watches have listed everything once."""

    models: Index = field(default_factory=dict)
    policies: Index = field(default_factory=dict)  # by policy_key, with those of others
    ray_services: Index = field(default_factory=dict)
    ray_clusters: Index = field(default_factory=dict)
    pods: Index = field(default_factory=dict)
    probe_jobs: Index = field(default_factory=dict)  # in the models' namespaces
    services: Index = field(default_factory=dict)
    jobs: Index = field(default_factory=dict)  # in the operator's own namespace, with their pods
    job_pods: Index = field(default_factory=dict)
    exceptions: Index = field(default_factory=dict)  # and the policies that let those of mirrors out
    fetch_jobs: Index = field(default_factory=dict)  # there too, by namespace and digest: see fetch_key
    fetch_pods: Index = field(default_factory=dict)
    nodes: Index = field(default_factory=dict)

    def children(self) -> tuple[Index, ...]:
        return (
            self.policies,
            self.ray_services,
            self.ray_clusters,
            self.pods,
            self.probe_jobs,
            self.services,
            self.jobs,
            self.job_pods,
            self.exceptions,
        )

    def keys(self) -> set[Key]:
        """Every model that exists, and every model that something was left behind of."""
        return {key for index in (self.models, *self.children()) for key in index if all(key)}

    def all_models(self) -> Iterator[Manifest]:
        return (body for bodies in self.models.values() for body in bodies)

    def of(self, index: Index, key: Key) -> tuple[Manifest, ...]:
        """The children of one model, by name."""
        return tuple(sorted(index.get(key, ()), key=lambda body: str(body["metadata"]["name"])))

    def opened_by_others(self, key: Key) -> tuple[str, ...]:
        """What others wrote in the model's namespace that could open its seal."""
        namespace, name = key
        others = (
            body
            for owner, bodies in self.policies.items()
            if owner != key and owner[0] == namespace
            for body in bodies
        )
        return opened_by(others, name)

    def concerned(self, policy: Mapping[str, Any]) -> set[Key]:
        """Whom a policy may matter to: the model that it seals, and every one in its namespace."""
        owner = policy_key(policy)
        neighbours = {key for key in self.models if key[0] == owner[0]}
        return neighbours | {owner} if all(owner) else neighbours

    def sharing(self, shared: Key) -> set[Key]:
        """The models that the Jobs under this namespace and digest matter to."""
        namespace, label = shared
        return {
            key_of(body)
            for body in self.all_models()
            if body["metadata"]["namespace"] == namespace
            and has_cache(body)
            and label in {label_of(digest) for digest in digests_of(body)}
        }

    def fetches_for(self, namespace: str, name: str, digests: Iterable[str]) -> tuple[Manifest, ...]:
        """The fetch Jobs that a model has something to do with."""
        there = (body for key, bodies in self.fetch_jobs.items() if key[0] == namespace for body in bodies)
        return concerning(there, namespace, name, digests)

    def neighbours(self, but: Key) -> tuple[Neighbour, ...]:
        """All other models that have weights on nodes, in any namespace."""
        return tuple(
            self._with_nodes_of_pods(Neighbour.of(body), key)
            for key, bodies in self.models.items()
            for body in bodies
            if key != but and has_cache(body)
        )

    def _with_nodes_of_pods(self, neighbour: Neighbour, key: Key) -> Neighbour:
        """During an upgrade status names the nodes of the new revision only; the old one still serves."""
        nodes = {
            str((pod.get("spec") or {}).get("nodeName") or "")
            for pod in self.pods.get(key, ())
            if ANNOTATION_ARTIFACT in (pod["metadata"].get("annotations") or {})
        }
        return replace(neighbour, nodes=neighbour.nodes | (nodes - {""}))

    def accelerators_taken(self, resource: str, but: Key) -> dict[str, int]:
        """How many of each node's accelerators the pods of other models have."""
        taken: dict[str, int] = {}
        for key, bodies in self.pods.items():
            for pod in bodies if key != but else ():
                node, count = (pod.get("spec") or {}).get("nodeName"), accelerators_of(pod, resource)
                if node and count:
                    taken[node] = taken.get(node, 0) + count
        return taken

    def node_facts(self, product_label: str) -> tuple[NodeFacts, ...]:
        return tuple(
            sorted(
                (
                    NodeFacts.from_node(body, product_label)
                    for bodies in self.nodes.values()
                    for body in bodies
                ),
                key=lambda node: node.name,
            )
        )

    def fingerprint(self, key: Key, product_label: str) -> str:
        """Changes exactly when something changed that a look at this model could see."""
        digest = hashlib.sha256()
        for version in self._versions(key):
            digest.update(version.encode())
        digest.update(repr(self.node_facts(product_label)).encode())
        digest.update(repr(self.opened_by_others(key)).encode())
        return digest.hexdigest()

    def _versions(self, key: Key) -> Iterator[str]:
        for index in (self.models, *self.children()):
            for body in self.of(index, key):
                metadata = body["metadata"]
                yield f"{body.get('kind')}/{metadata['uid']}/{metadata['resourceVersion']};"
        mine = (body for body in self.models.get(key, ()) if has_cache(body))
        digests = {digest for body in mine for digest in digests_of(body)}
        for index in (self.fetch_jobs, self.fetch_pods):
            for digest in sorted(digests):
                for body in self.of(index, (key[0], label_of(digest))):
                    yield f"{body['metadata']['uid']}/{body['metadata']['resourceVersion']};"


class NodeWatch:
    """Tells whether a node event matters: kubelets write their heartbeats into the same object."""

    def __init__(self, product_label: str, changed: Callable[[], None]) -> None:
        self._product_label = product_label
        self._changed = changed
        self._seen: dict[str, NodeFacts] = {}

    def event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        name = str(body["metadata"]["name"])
        if kind == "DELETED":
            gone = self._seen.pop(name, None)
            if gone is not None:
                self._changed()
            return
        facts = NodeFacts.from_node(plain(body), self._product_label)
        if self._seen.get(name) != facts:
            self._seen[name] = facts
            self._changed()
