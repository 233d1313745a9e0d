# SPDX-License-Identifier: Apache-2.0
"""The SovereignModel API: its name, the marks it leaves on other objects, and the whole object as a value.

Everything else in the operator takes its names from here. The shape of `spec` stands in `api_spec.py` and
`api_serving.py`, that of `status` in `api_status.py`; all of it can be imported from here. `crd.py` turns
these models into the CRD, so a description written there is what `kubectl explain` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from sovereign_operator.api_fields import ApiModel
from sovereign_operator.api_serving import (
    RESERVED_ENGINE_ARG_PREFIX,
    RESERVED_ENGINE_ARGS,
    Adapter,
    AllToAll,
    Device,
    Parallelism,
    ServingSpec,
    WorkerResources,
)
from sovereign_operator.api_spec import (
    Accelerator,
    ArtifactSource,
    Delivery,
    HuggingFaceSource,
    Network,
    NetworkClient,
    PlacementSpec,
    SecretKeyRef,
    SecretRef,
    Source,
    SovereignModelSpec,
    Toleration,
    Upgrade,
    Verification,
)
from sovereign_operator.api_status import (
    ArtifactStatus,
    Condition,
    DeliveryNode,
    DeliveryStatus,
    EgressStatus,
    MirrorStatus,
    PlacementStatus,
    SovereignModelStatus,
)

GROUP: Final = "sovereign.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "SovereignModel"
PLURAL: Final = "sovereignmodels"
SINGULAR: Final = "sovereignmodel"
SHORT_NAME: Final = "smodel"
CATEGORY: Final = "sovereign"

FIELD_MANAGER: Final = "sovereign-operator"
# Ours from the first day: kopf's default finalizer would be shared with every other kopf operator of the
# cluster.
FINALIZER: Final = f"{GROUP}/seal"

# On pods of the sealed set, and on nothing else: a mirror or fetch pod that carried it would be sealed too.
LABEL_MODEL: Final = f"{GROUP}/model"
LABEL_COMPONENT: Final = f"{GROUP}/component"
# On the objects we write (RayService, NetworkPolicy, Job, Secret): which SovereignModel they belong to.
LABEL_OWNER: Final = f"{GROUP}/owner"
LABEL_OWNER_NAMESPACE: Final = f"{GROUP}/owner-namespace"
# On a namespace, by the platform team: the admission policies guard it.
LABEL_SEALED: Final = f"{GROUP}/sealed"
# On mirror pods: a hash, because namespace and name together do not fit a label value.
LABEL_MIRROR_FOR: Final = f"{GROUP}/mirror-for"
# On fetch Jobs and their pods: the first half of the artifact's digest and a hash of the node's name, because
# neither fits a label value. The annotations of the same names have the whole.
LABEL_ARTIFACT: Final = f"{GROUP}/artifact"
LABEL_NODE: Final = f"{GROUP}/node"

COMPONENT_HEAD: Final = "head"
COMPONENT_WORKER: Final = "worker"
COMPONENT_MIRROR: Final = "mirror"
COMPONENT_FETCH: Final = "fetch"
# The probe's two sealed pods, and the one in the operator's namespace that no policy holds.
COMPONENT_PROBER: Final = "prober"
COMPONENT_PEER: Final = "peer"
COMPONENT_CONTROL: Final = "control"
SEALED_COMPONENTS: Final = (COMPONENT_HEAD, COMPONENT_PEER, COMPONENT_PROBER, COMPONENT_WORKER)

# The hash of what we rendered: an apply is needed when it differs from the live object's.
ANNOTATION_RENDERED: Final = f"{GROUP}/rendered"
# Written by a user with any new value: retry a failed mirror or fetch at once instead of after the backoff.
# On their Jobs: what was asked for before they were created.
ANNOTATION_RETRY: Final = f"{GROUP}/retry"
# Written by a user with any new value: the pods that a proven leak stopped may run again, once it is closed.
ANNOTATION_RELEASE: Final = f"{GROUP}/release-isolation"
# The full name of the model that a Job serves, for people.
ANNOTATION_MODEL: Final = f"{GROUP}/model"

# Stamped on the RayService beside what is rendered; KubeRay copies them to a RayCluster when it creates one,
# so they tell which rendering, which weights and which placement a running cluster has. The first stands on
# the head's pod template too: KubeRay mutes replicas and tolerations in its own hash, and would never roll
# those out.
ANNOTATION_CLUSTER: Final = f"{GROUP}/cluster"
# On pods that have their weights from a node's cache, too, and on fetch Jobs.
ANNOTATION_ARTIFACT: Final = f"{GROUP}/artifact"
ANNOTATION_PLACEMENT: Final = f"{GROUP}/placement"
# Hashes of what the policies allowed when the pods were started, and of the last time that they allowed less.
ANNOTATION_ALLOWED: Final = f"{GROUP}/allowed"
ANNOTATION_TIGHTENED: Final = f"{GROUP}/tightened"
# On the two Jobs of a probe and on their pods: which run they belong to.
ANNOTATION_PROBE_RUN: Final = f"{GROUP}/probe-run"
# On a fetch Job: the node that it writes to, and whether it fetches the small files only.
ANNOTATION_NODE: Final = f"{GROUP}/node"
ANNOTATION_CONFIG_ONLY: Final = f"{GROUP}/config-only"
# On a mirror or fetch Job: which try it is. Not part of what its name is a hash of.
ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"

MAX_NAME_LENGTH: Final = 40


class ObjectMeta(ApiModel):
    """The part of Kubernetes' object metadata that the operator reads."""

    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class SovereignModel(ApiModel):
    """One open-weight model, mirrored, verified, served and sealed."""

    metadata: ObjectMeta
    spec: SovereignModelSpec
    status: SovereignModelStatus = Field(default_factory=SovereignModelStatus)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> SovereignModel:
        """The object as the API server sent it. Raises pydantic.ValidationError where what is stored is older
        or newer than this operator understands (the reason for that is `SpecInvalid`)."""
        return cls.model_validate(body)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def is_being_deleted(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def selector(self) -> str:
        """The label selector of the sealed set, as users type it."""
        return f"{LABEL_MODEL}={self.name}"

    def owner_reference(self) -> dict[str, Any]:
        """For children in the model's own namespace, except the sealing policies, which outlive the pods."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.metadata.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


__all__ = [
    "ANNOTATION_ALLOWED",
    "ANNOTATION_ARTIFACT",
    "ANNOTATION_ATTEMPT",
    "ANNOTATION_CLUSTER",
    "ANNOTATION_CONFIG_ONLY",
    "ANNOTATION_MODEL",
    "ANNOTATION_NODE",
    "ANNOTATION_PLACEMENT",
    "ANNOTATION_PROBE_RUN",
    "ANNOTATION_RELEASE",
    "ANNOTATION_RENDERED",
    "ANNOTATION_RETRY",
    "ANNOTATION_TIGHTENED",
    "API_VERSION",
    "CATEGORY",
    "COMPONENT_CONTROL",
    "COMPONENT_FETCH",
    "COMPONENT_HEAD",
    "COMPONENT_MIRROR",
    "COMPONENT_PEER",
    "COMPONENT_PROBER",
    "COMPONENT_WORKER",
    "FIELD_MANAGER",
    "FINALIZER",
    "GROUP",
    "KIND",
    "LABEL_ARTIFACT",
    "LABEL_COMPONENT",
    "LABEL_MIRROR_FOR",
    "LABEL_MODEL",
    "LABEL_NODE",
    "LABEL_OWNER",
    "LABEL_OWNER_NAMESPACE",
    "LABEL_SEALED",
    "MAX_NAME_LENGTH",
    "PLURAL",
    "RESERVED_ENGINE_ARGS",
    "RESERVED_ENGINE_ARG_PREFIX",
    "SEALED_COMPONENTS",
    "SHORT_NAME",
    "SINGULAR",
    "VERSION",
    "Accelerator",
    "Adapter",
    "AllToAll",
    "ApiModel",
    "ArtifactSource",
    "ArtifactStatus",
    "Condition",
    "Delivery",
    "DeliveryNode",
    "DeliveryStatus",
    "Device",
    "EgressStatus",
    "HuggingFaceSource",
    "MirrorStatus",
    "Network",
    "NetworkClient",
    "ObjectMeta",
    "Parallelism",
    "PlacementSpec",
    "PlacementStatus",
    "SecretKeyRef",
    "SecretRef",
    "ServingSpec",
    "Source",
    "SovereignModel",
    "SovereignModelSpec",
    "SovereignModelStatus",
    "Toleration",
    "Upgrade",
    "Verification",
    "WorkerResources",
]
