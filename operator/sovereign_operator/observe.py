# SPDX-License-Identifier: Apache-2.0
"""Reads the world once, into one frozen value. All reading of a reconcile happens here.

The model itself is a live GET. Children come from the watches; what they do not show is asked for before
it is judged absent, because a watch may only be late.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from sovereign_operator.api import (
    ANNOTATION_ARTIFACT,
    ANNOTATION_PROBE_RUN,
    COMPONENT_CONTROL,
    COMPONENT_FETCH,
    COMPONENT_MIRROR,
    COMPONENT_PEER,
    COMPONENT_PROBER,
    LABEL_COMPONENT,
    LABEL_MODEL,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
    LABEL_SEALED,
    SovereignModel,
)
from sovereign_operator.cluster import (
    JOB,
    MODEL,
    NAMESPACE,
    POD,
    RAY_CLUSTER,
    RAY_SERVICE,
    SECRET,
    Cluster,
    Refused,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.fetches import Fetches, concerning, digests_of, fetch_key
from sovereign_operator.indices import Indices, Key
from sovereign_operator.kuberay import KubeRayState
from sovereign_operator.mirror import recorded_artifact
from sovereign_operator.probe_answers import has_ended
from sovereign_operator.progress import ProgressReader
from sovereign_operator.registry import RegistryReader
from sovereign_operator.values import NOT_THERE, Artifact, Evidence, Found, Manifest, Unreadable
from sovereign_operator.wanted import Unrenderable, Wanted, wanted
from sovereign_operator.world import World, annotation, component_of, is_dying, is_finished, is_of, name_of

PROBE_COMPONENTS: Final = (COMPONENT_PEER, COMPONENT_PROBER)


@dataclass(frozen=True, slots=True)
class Senses:
    """Everything that can be asked."""

    cluster: Cluster
    indices: Indices
    registry: RegistryReader
    progress: ProgressReader
    kuberay: KubeRayState
    config: OperatorConfig


async def observe(key: Key, senses: Senses) -> tuple[World, Wanted | None]:
    """What concerns this model now. No Wanted: it is gone, going, or cannot be read."""
    namespace, name = key
    body = await senses.cluster.get(MODEL, namespace, name)
    world = World(key=key, now=datetime.now(UTC), body=body)
    if body is None or is_dying(body):
        return await _what_is_left(world, senses), None
    try:
        model = SovereignModel.parse(body)
        wants = wanted(model, senses.config)
    except ValidationError as error:
        return _unreadable(world, "; ".join(_defects(error))), None
    except Unrenderable as error:
        return _unreadable(world, str(error)), None
    return await _alive(world, model, wants, senses), wants


async def _alive(world: World, model: SovereignModel, wants: Wanted, senses: Senses) -> World:
    indices, key = senses.indices, world.key
    found = await senses.registry.find(wants.repository, wants.target)
    jobs = _of_component(indices.of(indices.jobs, key), COMPONENT_MIRROR)
    job_pods = _of_component(indices.of(indices.job_pods, key), COMPONENT_MIRROR)
    if found == NOT_THERE and wants.job is not None:
        jobs = await _with_job(jobs, wants.job, senses)
    service = await _ray_service(key, senses)
    pods = indices.of(indices.pods, key)
    probe_jobs, probe_pods = await _probe(key, model, senses)
    return World(
        key=key,
        now=world.now,
        body=world.body,
        model=model,
        policies=indices.of(indices.policies, key),
        opened_by_others=indices.opened_by_others(key),
        ray_service=service,
        ray_clusters=indices.of(indices.ray_clusters, key),
        pods=tuple(pod for pod in pods if component_of(pod) not in PROBE_COMPONENTS),
        probe_pods=probe_pods,
        probe_jobs=probe_jobs,
        services=indices.of(indices.services, key),
        namespace_sealed=await _namespace_sealed(model.namespace, senses),
        jobs=jobs,
        job_pods=job_pods,
        exceptions=indices.of(indices.exceptions, key),
        fetches=await _fetches(key, model, found, pods, senses),
        progress=await senses.progress.of(key, job_pods) if jobs else None,
        found=found,
        token_missing=await _token_missing(model, found, jobs, senses),
        evidence=await _evidence(model, found, senses),
        nodes=indices.node_facts(senses.config.product_label),
        kuberay=await senses.kuberay.state(),
    )


async def _what_is_left(world: World, senses: Senses) -> World:
    """The remains of a model that goes: policies are let go on this evidence, so all of it is live."""
    cluster, indices, (namespace, name) = senses.cluster, senses.indices, world.key
    owner = f"{LABEL_OWNER}={name}"
    jobs = await cluster.list(
        JOB, senses.config.system_namespace, f"{owner},{LABEL_OWNER_NAMESPACE}={namespace}"
    )
    pods = await cluster.list(POD, namespace, f"{LABEL_MODEL}={name}")
    return World(
        key=world.key,
        now=world.now,
        body=world.body,
        policies=indices.of(indices.policies, world.key),
        ray_service=await cluster.get(RAY_SERVICE, namespace, name),
        ray_clusters=tuple(await cluster.list(RAY_CLUSTER, namespace, owner)),
        pods=tuple({**pod, "apiVersion": POD.api_version, "kind": POD.kind} for pod in pods),
        probe_jobs=indices.of(indices.probe_jobs, world.key),
        jobs=tuple({**job, "apiVersion": JOB.api_version, "kind": JOB.kind} for job in jobs),
        exceptions=indices.of(indices.exceptions, world.key),
        fetches=await _fetches_left(world, senses),
    )


async def _fetches(
    key: Key, model: SovereignModel, found: Found, pods: tuple[Manifest, ...], senses: Senses
) -> Fetches:
    """What brings weights to nodes, for a model that has them there or had."""
    indices, (namespace, name) = senses.indices, key
    digests = {model.status.serving_artifact, model.status.artifact.digest if model.status.artifact else ""}
    digests |= {annotation(pod, ANNOTATION_ARTIFACT).partition("@")[2] for pod in pods}
    digests |= {found.digest} if isinstance(found, Artifact) else set()
    jobs = indices.fetches_for(namespace, name, filter(None, digests))
    if model.spec.delivery.mode != "nodeCache" and not jobs:
        return Fetches()
    job_pods = tuple(
        pod
        for label in sorted({fetch_key(job)[1] for job in jobs})
        for pod in indices.of(indices.fetch_pods, (namespace, label))
    )
    return Fetches(
        jobs=jobs,
        pods=job_pods,
        progress=await senses.progress.of_each(job_pods) if job_pods else {},
        neighbours=indices.neighbours(but=key),
        taken=indices.accelerators_taken(model.spec.placement.accelerator.resource, but=key),
    )


async def _fetches_left(world: World, senses: Senses) -> Fetches:
    """The Jobs of a model that goes, and whoever else may need them. Asked without a cache too: it may have
    been switched off since."""
    namespace, name = world.key
    selector = f"{LABEL_COMPONENT}={COMPONENT_FETCH},{LABEL_OWNER_NAMESPACE}={namespace}"
    live = await senses.cluster.list(JOB, senses.config.system_namespace, selector)
    jobs = concerning(live, namespace, name, digests_of(world.body or {}))
    return Fetches(
        jobs=tuple({**job, "apiVersion": JOB.api_version, "kind": JOB.kind} for job in jobs),
        neighbours=senses.indices.neighbours(but=world.key),
    )


async def _probe(
    key: Key, model: SovereignModel, senses: Senses
) -> tuple[tuple[Manifest, ...], tuple[Manifest, ...]]:
    """The Jobs of a probe and its pods. Of a Job that ended, and whose pod's end was not seen, it is asked
    for: the two watches run side by side."""
    indices = senses.indices
    jobs = (
        *indices.of(indices.probe_jobs, key),
        *_of_component(indices.of(indices.jobs, key), COMPONENT_CONTROL),
    )
    pods = (
        *_of_component(indices.of(indices.pods, key), *PROBE_COMPONENTS),
        *_of_component(indices.of(indices.job_pods, key), COMPONENT_CONTROL),
    )
    judged = model.status.egress.run if model.status.egress else ""
    for job in jobs:
        if not is_finished(job) or annotation(job, ANNOTATION_PROBE_RUN) == judged or has_ended(job, pods):
            continue
        metadata = job["metadata"]
        selector = f"batch.kubernetes.io/job-name={metadata['name']}"
        live = await senses.cluster.list(POD, metadata["namespace"], selector)
        pods = (*(pod for pod in pods if not is_of(pod, job)), *live)
    return jobs, pods


async def _namespace_sealed(namespace: str, senses: Senses) -> bool | None:
    if not senses.config.admission:
        return None
    found = await senses.cluster.get(NAMESPACE, None, namespace) or {}
    return ((found.get("metadata") or {}).get("labels") or {}).get(LABEL_SEALED) == "true"


def _of_component(bodies: tuple[Manifest, ...], *components: str) -> tuple[Manifest, ...]:
    return tuple(body for body in bodies if component_of(body) in components)


async def _with_job(jobs: tuple[Manifest, ...], wanted_job: Manifest, senses: Senses) -> tuple[Manifest, ...]:
    if any(name_of(job) == name_of(wanted_job) for job in jobs):
        return jobs
    live = await senses.cluster.get(JOB, senses.config.system_namespace, name_of(wanted_job))
    return jobs if live is None else (*jobs, live)


async def _ray_service(key: Key, senses: Senses) -> Manifest | None:
    seen = senses.indices.of(senses.indices.ray_services, key)
    if seen:
        return seen[0]
    return await senses.cluster.get(RAY_SERVICE, *key)


async def _token_missing(
    model: SovereignModel, found: Found, jobs: tuple[Manifest, ...], senses: Senses
) -> bool:
    """Whether the hub token that the spec names is absent. Asked only before a mirror Job is started."""
    hub = model.spec.source.hugging_face
    if hub is None or hub.token_secret_ref is None or found != NOT_THERE or jobs:
        return False
    secret = await senses.cluster.get(SECRET, model.namespace, hub.token_secret_ref.name)
    return hub.token_secret_ref.key not in ((secret or {}).get("data") or {})


async def _evidence(model: SovereignModel, found: Found, senses: Senses) -> Evidence | None:
    """The keys that are trusted and the signatures beside the artifact, where the spec asks for any."""
    wanted_keys = model.spec.verification.keys_secret_ref
    if wanted_keys is None:
        return None
    keys: tuple[tuple[str, bytes], ...] = ()
    no_keys = ""
    try:
        secret = await senses.cluster.get(SECRET, model.namespace, wanted_keys.name)
        entries = (secret or {}).get("data") or {}
        keys = tuple((name, base64.b64decode(entries[name] or "")) for name in sorted(entries))
        no_keys = "" if keys else ("found none" if secret is None else "found it empty")
    except Refused as error:
        no_keys = f"was not allowed to read it: {error}"
    # While the registry is away the artifact that status names is judged by what was read before.
    artifact = recorded_artifact(model) if isinstance(found, Unreadable) else found
    signatures = (
        await senses.registry.signatures(artifact.reference) if isinstance(artifact, Artifact) else None
    )
    return Evidence(keys, no_keys, signatures)


def _unreadable(world: World, why: str) -> World:
    return World(key=world.key, now=world.now, body=world.body, unreadable=why[:900])


def _defects(error: ValidationError) -> list[str]:
    return [
        f"{'.'.join(str(part) for part in defect['loc'])}: {defect['msg']}" for defect in error.errors()[:10]
    ]
