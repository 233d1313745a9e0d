# SPDX-License-Identifier: Apache-2.0
"""One look at everything that concerns one model, and the vocabulary of what may be done about it.

`observe.py` makes a World, the planning modules (`mirror`, `distribution`, `rollout`, `sealing`,
`deletion`, `plan`) turn it into Actions without asking anybody, `carry_out.py` does them in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from sovereign_operator.api import LABEL_COMPONENT, SovereignModel
from sovereign_operator.fetches import Fetches
from sovereign_operator.indices import Key
from sovereign_operator.kuberay import KubeRay
from sovereign_operator.values import NOT_THERE, Evidence, Found, Manifest, MirrorProgress, NodeFacts


@dataclass(frozen=True, slots=True)
class World:
    """What was seen. `body` is the model as the API server sent it, None where there is none (any more)."""

    key: Key
    now: datetime
    body: Manifest | None = None
    model: SovereignModel | None = None  # None with a body: it could not be read, `unreadable` says why
    unreadable: str = ""
    policies: tuple[Manifest, ...] = ()
    opened_by_others: tuple[str, ...] = ()  # policies that could open the seal: name and hash of each
    ray_service: Manifest | None = None
    ray_clusters: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()  # of the sealed set, without those of the probe
    probe_pods: tuple[Manifest, ...] = ()  # prober, peer and control
    probe_jobs: tuple[Manifest, ...] = ()  # of prober and control
    services: tuple[Manifest, ...] = ()  # the peer's
    namespace_sealed: bool | None = None  # whether it carries its label; None: nobody asks for it
    jobs: tuple[Manifest, ...] = ()  # of the mirror
    job_pods: tuple[Manifest, ...] = ()
    exceptions: tuple[Manifest, ...] = ()  # policies that let pods of the mirror out
    fetches: Fetches = field(default_factory=Fetches)  # of weights to nodes
    progress: MirrorProgress | None = None
    found: Found = NOT_THERE
    token_missing: bool = False
    evidence: Evidence | None = None  # None: no signatures are asked for
    nodes: tuple[NodeFacts, ...] = ()
    kuberay: KubeRay = KubeRay.SUPPORTED

    @property
    def is_being_deleted(self) -> bool:
        return self.body is not None and "deletionTimestamp" in self.body["metadata"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One condition as the planning sees it. `stalled`: nothing changes until a person does something."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    stalled: bool = False

    @property
    def is_true(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something worth telling once. `about` makes two happenings of the same words different ones."""

    reason: str
    message: str
    kind: Literal["Normal", "Warning"] = "Normal"
    about: str = ""


# -- what may be done -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """Put our finalizer on the model: before its first child."""


@dataclass(frozen=True, slots=True)
class Release:
    """Take our finalizer off an object."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply. `restores`: somebody deleted or changed what we rendered; `drifted_at`: where."""

    manifest: Manifest
    restores: bool = False
    drifted_at: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """Take away what somebody added to what we rendered: an apply leaves fields alone that others own.

    `patch`: a merge patch of the live object.
    """

    live: Manifest
    manifest: Manifest
    patch: Manifest

    @property
    def drifted_at(self) -> str:
        """The first field that differs, as `.spec.egress`."""
        path, inside = "", self.patch
        while isinstance(inside, dict) and inside:
            key = min(inside)
            path, inside = f"{path}.{key}", inside[key]
        return path


@dataclass(frozen=True, slots=True)
class Reseal:
    """Put back a policy that somebody is deleting, without a moment in which nothing is denied."""

    dying: Manifest
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Create:
    """Create what must not exist twice: a live GET first."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class CopyToken:
    """Copy one key of a Secret beside the mirror Job, owned by it."""

    job: str
    secret: str
    key: str


@dataclass(frozen=True, slots=True)
class Delete:
    manifest: Manifest
    foreground: bool = False


Action = Hold | Release | Apply | Strip | Reseal | Create | CopyToken | Delete


# -- small readings ---------------------------------------------------------------------------------------


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def annotation(manifest: Manifest, name: str) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(name, ""))


def is_dying(manifest: Manifest) -> bool:
    return bool(manifest["metadata"].get("deletionTimestamp"))


def is_of(pod: Manifest, job: Manifest) -> bool:
    """Whether the Job made this pod."""
    return any(
        owner.get("uid") == job["metadata"].get("uid")
        for owner in pod["metadata"].get("ownerReferences") or ()
    )


def is_finished(job: Manifest) -> bool:
    return any(condition_of(job, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def component_of(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(LABEL_COMPONENT, ""))


def condition_of(manifest: Manifest, kind: str) -> Manifest:
    """A condition from an object's status, or an empty one."""
    for condition in (manifest.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def moment(stamp: str | None) -> datetime | None:
    """A Kubernetes time stamp as a moment."""
    if not stamp:
        return None
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone(UTC)


def stamp(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
