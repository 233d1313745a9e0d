# SPDX-License-Identifier: Apache-2.0
"""What a user may ask for: the `spec` of a SovereignModel.

The bounds stand here (the CRD repeats them), the rules between fields in `crd_rules.py`. Each description
says the unit, the default and an example, because `kubectl explain` is the documentation most users read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sovereign_operator.api_fields import ApiModel, Glob, LabelValue, SecretName
from sovereign_operator.api_serving import ServingSpec


class SecretRef(ApiModel):
    """A Secret in the model's namespace."""

    name: SecretName = Field(
        description="Name of the Secret, in the namespace of the model. Example: vendor-keys"
    )


class SecretKeyRef(SecretRef):
    """One key of a Secret in the model's namespace."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        default="token", description="Key within the Secret. Default: token. Example: hf-token"
    )


class HuggingFaceSource(ApiModel):
    """A repository on a model hub, at one commit."""

    repo: Annotated[str, StringConstraints(max_length=193)] = Field(
        description=(
            "Repository as owner/name. It cannot change after creation. Example: "
            "mistralai/Mixtral-8x7B-Instruct-v0.1"
        )
    )
    revision: Annotated[str, StringConstraints(max_length=64)] = Field(
        description=(
            "Commit to mirror: 40 lower-case hex digits, never a branch or tag, because those move. "
            "Changing it mirrors the new commit while the old one goes on serving. Example: "
            "41bd4c9e7e4fb318ca40e721131d4933966c2cc1"
        )
    )
    include: list[Glob] = Field(
        default_factory=list,
        max_length=32,
        description=(
            "Glob patterns of files to take, out of those a model may consist of. Default: all of them. "
            "Example: [model-*.safetensors, '*.json']"
        ),
    )
    exclude: list[Glob] = Field(
        default_factory=list,
        max_length=32,
        description=(
            "Glob patterns of files to leave out, applied after include. Default: none. Example: "
            "[consolidated*]"
        ),
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description=(
            "Secret with an access token for gated repositories. Only the mirror Job sees it, never a model"
            " pod. Default: anonymous. Example: {name: hub-token, key: token}"
        ),
    )


class ArtifactSource(ApiModel):
    """A model artifact that is already in the in-cluster registry, for example loaded from a bundle."""

    reference: Annotated[str, StringConstraints(max_length=384)] = Field(
        description=(
            "Repository in the in-cluster registry (without a host) and digest. The digest may change, the "
            "repository may not. Example: "
            "models/org/name@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        )
    )


class Source(ApiModel):
    """Where the weights come from: exactly one member is set, and which one cannot change after creation."""

    hugging_face: HuggingFaceSource | None = Field(
        default=None,
        description=(
            "A hub repository at one commit, mirrored into the in-cluster registry with every digest "
            "checked. Needs external sources allowed in the operator's configuration."
        ),
    )
    artifact: ArtifactSource | None = Field(
        default=None,
        description="An artifact that is already in the in-cluster registry. Works without any network.",
    )


class Verification(ApiModel):
    """Whose signatures the artifact must carry before it is served. What is served already stays."""

    keys_secret_ref: SecretRef | None = Field(
        default=None,
        description=(
            "Secret in which each entry is one PEM public key (Ed25519 or ECDSA P-256), nothing else. A "
            "changed Secret is noticed within five minutes. Default: digests only, no signatures. Example: "
            "{name: vendor-keys}"
        ),
    )
    threshold: int = Field(
        default=1,
        ge=1,
        le=16,
        description=(
            "How many different ones of these keys must have signed the artifact. Unit: keys. Default: 1. "
            "Example: 2"
        ),
    )


class Accelerator(ApiModel):
    """Which accelerators, and how many of a node."""

    resource: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        default="nvidia.com/gpu",
        description=(
            "Extended resource that stands for one accelerator. Default: nvidia.com/gpu. Example: amd.com/gpu"
        ),
    )
    product: LabelValue | None = Field(
        default=None,
        description=(
            "Product that a node's label must name exactly (the label is set in the operator's "
            "configuration, by default nvidia.com/gpu.product). Default: any product. Example: NVIDIA-H200"
        ),
    )
    per_node: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description=(
            "Accelerators that one worker pod takes from its node. Unit: accelerators. Default: as many as "
            "a node has, but no more than a replica needs. Example: 8"
        ),
    )


class Toleration(ApiModel):
    """A node taint that the model's pods accept."""

    key: Annotated[str, StringConstraints(max_length=316)] | None = Field(
        default=None,
        description=(
            "Key of the taint; absent with operator Exists accepts every taint. Example: nvidia.com/gpu"
        ),
    )
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal",
        description="Equal compares the value, Exists accepts any. Default: Equal. Example: Exists",
    )
    value: LabelValue | None = Field(
        default=None, description="Value of the taint, with operator Equal. Example: inference"
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint. Default: every effect. Example: NoSchedule"
    )


class PlacementSpec(ApiModel):
    """On which nodes the workers run. The head carries no accelerator; it obeys the selector too."""

    accelerator: Accelerator = Field(
        default_factory=Accelerator,
        description="Which accelerators, and how many of a node. Example: {product: NVIDIA-H200, perNode: 8}",
    )
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=16,
        description=(
            "Node labels that all pods of the model ask for. Default: none. Example: "
            "{topology.kubernetes.io/zone: a}"
        ),
    )
    tolerations: list[Toleration] = Field(
        default_factory=list,
        max_length=16,
        description=(
            "Taints that all pods of the model accept. Default: none. Example: [{key: nvidia.com/gpu, "
            "operator: Exists}]"
        ),
    )


class Delivery(ApiModel):
    """How the weights reach a node."""

    mode: Literal["ephemeral", "nodeCache"] = Field(
        default="ephemeral",
        description=(
            "ephemeral: each pod pulls and checks them before it starts. nodeCache: once per node into a "
            "cache that its pods share read-only; they have no way to the registry then. Needs nodeCache in "
            "the operator's configuration. Default: ephemeral. Example: nodeCache"
        ),
    )
    verify: Literal["changed", "always"] = Field(
        default="changed",
        description=(
            "With nodeCache, what a pod checks before it starts. changed: sizes and times of all files "
            "against what was written when they were verified. always: every byte again, minutes for a large "
            "model. Default: changed. Example: always"
        ),
    )


class NetworkClient(ApiModel):
    """Pods that may call the model's endpoint."""

    namespace: LabelValue | None = Field(
        default=None, description="Their namespace. Default: the namespace of the model. Example: chat"
    )
    pod_labels: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=8,
        description="Labels that they carry. Default: every pod of the namespace. Example: {app: assistant}",
    )


class Network(ApiModel):
    """Who may reach the model. Its pods never reach anything outside; there is no field that opens egress."""

    clients: list[NetworkClient] = Field(
        default_factory=list,
        max_length=32,
        description=(
            "Pods that may call port 8000. Default: none. Example: [{namespace: chat, podLabels: {app: "
            "assistant}}]"
        ),
    )
    on_leak: Literal["Isolate", "Report"] = Field(
        default="Isolate",
        description=(
            "What happens when a probe proves a way out: Isolate stops the pods, Report only says so. "
            "Default: Isolate. Example: Report"
        ),
    )


class Upgrade(ApiModel):
    """How a changed revision or image is rolled out."""

    strategy: Literal["recreate", "newCluster"] = Field(
        default="recreate",
        description=(
            "recreate: stop, then start the new one. newCluster: start the new one beside the old, which "
            "needs twice the accelerators for a while. Default: recreate. Example: newCluster"
        ),
    )


class SovereignModelSpec(ApiModel):
    """What is wanted."""

    source: Source = Field(
        description="Where the weights come from: exactly one of huggingFace and artifact."
    )
    verification: Verification = Field(
        default_factory=Verification,
        description="Whose signatures the artifact must carry. Default: digests only.",
    )
    serving: ServingSpec = Field(
        description="How the model is served: image, replicas, parallelism, engine arguments."
    )
    placement: PlacementSpec = Field(
        default_factory=PlacementSpec,
        description="On which nodes and accelerators. Default: any nvidia.com/gpu.",
    )
    delivery: Delivery = Field(
        default_factory=Delivery, description="How the weights reach a node. Default: ephemeral."
    )
    network: Network = Field(default_factory=Network, description="Who may reach the model. Default: nobody.")
    upgrade: Upgrade = Field(
        default_factory=Upgrade, description="How a change is rolled out. Default: recreate."
    )
    suspend: bool = Field(
        default=False,
        description=(
            "Stop the pods and keep everything else; Ready is then False with reason Suspended. Default: "
            "false. Example: true"
        ),
    )
