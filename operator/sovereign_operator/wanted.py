# SPDX-License-Identifier: Apache-2.0
"""What a model's spec asks for before anything is looked at: its place in the registry, its Job, its
policies.

Pure. A spec that the API server accepted can still be one that we cannot render (an engine argument that
is no scalar, a repository name that no registry takes): that is `Unrenderable`, a sentence, never a
crash.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from sovereign_airgap.errors import SovereignError
from sovereign_airgap.reference import ArtifactReference, HubReference
from sovereign_airgap.selection import Wish
from sovereign_operator.api import SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.mirror_job import mirror_job
from sovereign_operator.desired.network_policy import policies
from sovereign_operator.desired.ray_service import ray_service
from sovereign_operator.values import Artifact, Manifest, Placement


class Unrenderable(Exception):
    """The spec cannot be turned into objects; the message says which part and why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`job` is None for a source that must be in the registry already."""

    repository: str
    target: str  # the commit's tag, or a digest
    policies: tuple[Manifest, ...]
    job: Manifest | None


def wanted(model: SovereignModel, config: OperatorConfig) -> Wanted:
    try:
        repository, target = place(model)
        sealing = tuple(policies(model, config))
        job = mirror_job(model, config) if model.spec.source.hugging_face else None
    except (SovereignError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise Unrenderable(_sentence(error)) from error
    return Wanted(repository, target, sealing, job)


def place(model: SovereignModel) -> tuple[str, str]:
    """The repository in the registry, and the tag or digest in it."""
    source = model.spec.source
    if source.hugging_face is not None:
        hub = HubReference(source.hugging_face.repo, source.hugging_face.revision)
        wish = Wish(tuple(source.hugging_face.include), tuple(source.hugging_face.exclude))
        return hub.default_repository(), wish.tag(hub.revision)
    if source.artifact is not None:
        reference = ArtifactReference.parse(source.artifact.reference)
        return reference.repository, str(reference.digest)
    raise ValueError("Expected spec.source to have huggingFace or artifact, found neither.")


def render(
    model: SovereignModel, artifact: Artifact, placement: Placement, config: OperatorConfig
) -> Manifest:
    """The RayService for this artifact and placement."""
    try:
        return ray_service(model, artifact, placement, config)
    except (SovereignError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise Unrenderable(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    text = str(error) if str(error) else type(error).__name__
    return " ".join(text.split())[:800]
