# SPDX-License-Identifier: Apache-2.0
"""What passes between observing, deciding and reporting: frozen values without behaviour of their own.

`observe.py`, `registry.py` and `cluster.py` make them, `placement.py`, `desired/` and `status.py` take them.
Nothing here reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sovereign_airgap.facts import ModelFacts

# A Kubernetes object as plain data, the way it is rendered and applied.
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete model artifact in the in-cluster registry."""

    reference: str  # models/org/name@sha256:… (no host)
    digest: str
    bytes: int
    files: int
    revision: str = ""
    facts: ModelFacts | None = None

    @property
    def repository(self) -> str:
        return self.reference.partition("@")[0]


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the planner knows of a node. `allocatable` holds extended resources only, not cpu or memory."""

    name: str
    ready: bool = True
    schedulable: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    allocatable: Mapping[str, int] = field(default_factory=dict)
    product: str | None = None  # value of the configured product label

    @classmethod
    def from_node(cls, node: Mapping[str, Any], product_label: str) -> NodeFacts:
        """From a Node object as the API server sent it."""
        metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
        labels = metadata.get("labels") or {}
        return cls(
            name=metadata["name"],
            ready=any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()),
            schedulable=not spec.get("unschedulable", False),
            labels=dict(labels),
            taints=tuple(
                Taint(key=t["key"], value=t.get("value", ""), effect=t["effect"])
                for t in spec.get("taints") or ()
            ),
            allocatable={
                name: count
                for name, amount in (status.get("allocatable") or {}).items()
                if "/" in name and (count := _count(str(amount))) is not None
            },
            product=labels.get(product_label),
        )


def _count(amount: str) -> int | None:
    """A whole number as the API server spells it: it turns 2000 shares of an accelerator into `2k`."""
    digits, factor = (amount[:-1], 1000) if amount.endswith("k") else (amount, 1)
    return int(digits) * factor if digits.isdecimal() else None


def accelerators_of(pod: Manifest, resource: str) -> int:
    """How many accelerators a pod has of its node for as long as it has not ended."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    containers = (pod.get("spec") or {}).get("containers") or ()
    limits = ((container.get("resources") or {}).get("limits") or {} for container in containers)
    return sum(_count(str(each.get(resource, "0"))) or 0 for each in limits)


@dataclass(frozen=True, slots=True)
class Placement:
    """What the planner decided."""

    tensor: int
    pipeline: int
    data: int
    expert: bool
    replicas: int
    accelerators_per_worker: int
    workers: int  # worker pods of one replica
    ranks_per_worker: int  # data-parallel ranks in one worker pod; 0 where one rank spans several workers
    redundant_experts: int = 0
    all_to_all: str | None = None
    nodes: tuple[str, ...] = ()  # candidates, sorted; the scheduler picks
    why: str = ""
    # With a cache on nodes: where the weights were when the workers were started; they prefer these nodes.
    chosen: tuple[str, ...] = ()

    @property
    def pods(self) -> int:
        """Worker pods in all."""
        return self.replicas * self.workers


@dataclass(frozen=True, slots=True)
class Unplaceable:
    """Why there is no placement: a reason from `reasons.py`, and what was looked for and found."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class MirrorProgress:
    """What a mirror pod answers on :8090/progress."""

    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0
    files_total: int = 0
    file: str = ""
    phase: str = ""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MirrorProgress:
        return cls(
            bytes_done=int(body.get("bytesDone", 0)),
            bytes_total=int(body.get("bytesTotal", 0)),
            files_done=int(body.get("filesDone", 0)),
            files_total=int(body.get("filesTotal", 0)),
            file=str(body.get("file") or ""),
            phase=str(body.get("phase") or ""),
        )


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """What a fetch pod answers, and how fast it was between two answers, in bytes per second."""

    bytes_done: int = 0
    bytes_total: int = 0
    phase: str = ""
    rate: int = 0


@dataclass(frozen=True, slots=True)
class NotThere:
    """The registry answered, and has no such artifact."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The registry gave no usable answer: a reason for Mirrored, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Envelopes:
    """The signatures beside one artifact as they lie in the registry; nothing of them is judged.

    `defects`: a sentence for each that could not be read.
    """

    reference: str  # models/org/name@sha256:…, the artifact that they are beside
    contents: tuple[bytes, ...] = ()
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verification is judged by. `no_keys`: why there are none to judge with."""

    # The entries of the Secret by name. It may be the wrong Secret: never to be printed.
    keys: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    no_keys: str = ""
    signatures: Envelopes | Unreadable | None = None  # None: there is no artifact yet


# What the registry says about an artifact.
Found = Artifact | NotThere | Unreadable
NOT_THERE: Final = NotThere()
