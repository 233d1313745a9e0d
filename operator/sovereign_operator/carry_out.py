# SPDX-License-Identifier: Apache-2.0
"""The dull half of deciding: carries out the actions of a plan, in order, and says what came of it."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from sovereign_operator.api import FIELD_MANAGER, FINALIZER
from sovereign_operator.cluster import (
    JOB,
    SECRET,
    Cluster,
    Conflict,
    KindMissing,
    NamespaceTerminating,
    Refused,
    kind_of,
)
from sovereign_operator.conditions import Outcome
from sovereign_operator.desired.rendered import rendered_hash
from sovereign_operator.kuberay import KubeRayState
from sovereign_operator.values import Manifest
from sovereign_operator.world import (
    Action,
    Apply,
    CopyToken,
    Create,
    Delete,
    Hold,
    Release,
    Reseal,
    Strip,
    World,
    name_of,
)

logger = logging.getLogger(__name__)

APPLIES: Final = 3
WINDOW_SECONDS: Final = 600.0


@dataclass
class Contention:
    """How often the same rendering had to be put back. Three times in ten minutes is a fight: we stop."""

    _applied: dict[tuple[str, str, str, str], deque[float]] = field(default_factory=dict)

    def is_contested(self, manifest: Manifest) -> bool:
        """True after three repairs, until ten minutes after the last one."""
        times = self._applied.get(self._key(manifest))
        if not times:
            return False
        now = asyncio.get_running_loop().time()
        if now - times[-1] >= WINDOW_SECONDS:
            del self._applied[self._key(manifest)]
            return False
        return len(times) == APPLIES and times[-1] - times[0] < WINDOW_SECONDS

    def repaired(self, manifest: Manifest) -> None:
        times = self._applied.setdefault(self._key(manifest), deque(maxlen=APPLIES))
        times.append(asyncio.get_running_loop().time())

    @staticmethod
    def _key(manifest: Manifest) -> tuple[str, str, str, str]:
        metadata = manifest["metadata"]
        return (
            str(manifest["kind"]),
            str(metadata.get("namespace", "")),
            str(metadata["name"]),
            rendered_hash(manifest),
        )


@dataclass(frozen=True, slots=True)
class Done:
    outcome: Outcome
    restored: tuple[str, ...] = ()


class Executor:
    """Carries out actions against one cluster."""

    def __init__(self, cluster: Cluster, kuberay: KubeRayState, system_namespace: str) -> None:
        self._cluster = cluster
        self._kuberay = kuberay
        self._system_namespace = system_namespace
        self._contention = Contention()

    async def carry_out(self, world: World, actions: tuple[Action, ...]) -> Done:
        """Stops at the first action that is refused: what follows may rely on it."""
        outcome = Outcome()
        restored: list[str] = []
        for action in actions:
            try:
                if isinstance(action, Apply | Strip) and (why := await self._contested(action)):
                    return Done(replace(outcome, contested=why), tuple(restored))
                await self._one(world, action)
            except NamespaceTerminating:
                return Done(replace(outcome, terminating=True), tuple(restored))
            except Refused as error:
                words = f"The API server refused {_what(action)}: {error}"
                logger.warning("%s: %s", world.key, words)
                return Done(replace(outcome, refused=words), tuple(restored))
            outcome = replace(outcome, writes=outcome.writes + 1)
            logger.info("%s: %s", "/".join(world.key), _what(action))
            if (isinstance(action, Apply) and action.restores) or isinstance(action, Strip | Reseal):
                restored.append(f"{action.manifest['kind']} {name_of(action.manifest)}")
        return Done(outcome, tuple(restored))

    async def _one(self, world: World, action: Action) -> None:
        match action:
            case Hold():
                assert world.body is not None
                finalizers = world.body["metadata"].get("finalizers") or []
                await self._cluster.set_finalizers(world.body, [*finalizers, FINALIZER])
            case Release(manifest):
                await self._release(manifest)
            case Apply(manifest, drifted_at=drifted_at):
                await self._apply(manifest)
                if drifted_at:
                    self._contention.repaired(manifest)
            case Strip(live, manifest, patch):
                await self._cluster.merge(live, patch)
                self._contention.repaired(manifest)
            case Reseal(dying, manifest):
                await self._reseal(dying, manifest)
            case Create(manifest):
                await self._create(manifest)
            case CopyToken():
                await self._copy_token(world, action)
            case Delete(manifest, foreground):
                await self._cluster.delete(manifest, foreground=foreground)

    async def _apply(self, manifest: Manifest) -> None:
        try:
            await self._cluster.apply(manifest)
        except KindMissing:
            self._kuberay.doubt()
            raise

    async def _release(self, manifest: Manifest) -> None:
        """Reads the object first: a delete just before has changed its version."""
        metadata = manifest["metadata"]
        live = await self._cluster.get(kind_of(manifest), metadata.get("namespace"), metadata["name"])
        if live is None or live["metadata"]["uid"] != metadata["uid"]:
            return
        finalizers = live["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            await self._cluster.set_finalizers(live, [name for name in finalizers if name != FINALIZER])

    async def _reseal(self, dying: Manifest, manifest: Manifest) -> None:
        """A copy under another name denies while the original is let go and made anew.

        In a namespace that is being deleted the copy is refused before anything was let go, so the dying
        policy goes on denying until the last pod is gone.
        """
        copied = copy.deepcopy(manifest)
        copied["metadata"]["name"] = f"{name_of(manifest)}-stand-in"
        copied["metadata"].pop("finalizers", None)
        stand_in = await self._cluster.apply(copied)
        await self._release(dying)
        await self._cluster.apply(manifest)
        await self._cluster.delete(stand_in)

    async def _create(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        if await self._cluster.get(kind_of(manifest), metadata["namespace"], metadata["name"]) is None:
            try:
                await self._cluster.create(manifest)
            except Conflict:
                logger.info("%s %s is there already", manifest["kind"], metadata["name"])

    async def _copy_token(self, world: World, action: CopyToken) -> None:
        """The copy is owned by the Job, so it goes with it. It is never read back."""
        namespace, _ = world.key
        job = await self._cluster.get(JOB, self._system_namespace, action.job)
        secret = await self._cluster.get(SECRET, namespace, action.secret)
        value = ((secret or {}).get("data") or {}).get(action.key)
        if job is None or value is None:
            return
        await self._cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": f"{action.job}-token",
                    "namespace": self._system_namespace,
                    "labels": dict(job["metadata"].get("labels") or {}),
                    "ownerReferences": [
                        {
                            "apiVersion": job["apiVersion"],
                            "kind": job["kind"],
                            "name": action.job,
                            "uid": job["metadata"]["uid"],
                        }
                    ],
                },
                "data": {"token": value},
                "type": "Opaque",
            }
        )

    async def _contested(self, action: Apply | Strip) -> str:
        """Who writes the fields that we render, once it is clear that somebody does."""
        if not action.drifted_at or not self._contention.is_contested(action.manifest):
            return ""
        manifest = action.manifest
        metadata = manifest["metadata"]
        others = "not read"  # the Role in its own namespace lets the operator read no policy by name
        if metadata.get("namespace") != self._system_namespace:
            live = await self._cluster.get(kind_of(manifest), metadata.get("namespace"), metadata["name"])
            others = ", ".join(other_managers(live or {})) or "somebody without a field manager"
        return (
            f"{manifest['kind']} {metadata['name']} was put back {APPLIES} times in ten minutes and "
            f"is changed again at {action.drifted_at}; its other field managers: {others}. Stop the one that "
            "writes this field; the operator tries again after ten minutes."
        )


def other_managers(live: Manifest) -> list[str]:
    """Everybody else who wrote the object itself (not its status), latest first."""
    entries = [
        entry
        for entry in (live.get("metadata") or {}).get("managedFields") or ()
        if entry.get("manager") != FIELD_MANAGER and entry.get("subresource") != "status"
    ]
    entries.sort(key=lambda entry: str(entry.get("time") or ""), reverse=True)
    return list(dict.fromkeys(str(entry.get("manager")) for entry in entries))


def _what(action: Action) -> str:
    match action:
        case Hold():
            return "the finalizer of the model"
        case CopyToken(job=job):
            return f"the hub token for Job {job}"
        case Strip(manifest=manifest):
            return f"strip {manifest['kind']} {name_of(manifest)} of what was added at {action.drifted_at}"
        case Apply(manifest) | Create(manifest) | Delete(manifest) | Release(manifest) | Reseal(_, manifest):
            verb = type(action).__name__.lower()
            return f"{verb} {manifest['kind']} {name_of(manifest)}"
