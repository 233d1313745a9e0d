# SPDX-License-Identifier: Apache-2.0
"""What the operator reports: the `status` of a SovereignModel. The words in it come from `reasons.py`.

No clients and no decisions: `status.py` computes these values, one request to `/status` writes them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sovereign_operator.api_fields import ApiModel

Text = Annotated[str, StringConstraints(max_length=1024)]
LongText = Annotated[str, StringConstraints(max_length=32768)]


class Condition(ApiModel):
    """One statement about the model, in the shape of Kubernetes' own conditions."""

    type: Annotated[str, StringConstraints(max_length=316)] = Field(
        description=(
            "What the statement is about: Ready, Reconciling, Stalled, Verified, Mirrored, Placed, "
            "Distributed, Serving or EgressSealed."
        )
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="One stable CamelCase word for programs. Example: NoMatchingNodes"
    )
    message: LongText = Field(default="", description="One sentence for people: expected, found, what to do.")
    last_transition_time: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None, description="When the status last changed, RFC 3339. Example: '2026-01-31T12:00:00Z'"
    )
    observed_generation: int = Field(
        default=0, ge=0, description="The metadata.generation that this statement is about."
    )


class ArtifactStatus(ApiModel):
    """The artifact in the in-cluster registry that is served or about to be."""

    reference: Text = Field(default="", description="Repository and digest in the in-cluster registry.")
    digest: Text = Field(default="", description="Digest of the artifact's manifest. Example: sha256:9f86…")
    bytes: int = Field(default=0, ge=0, description="Size of all files. Unit: bytes.")
    files: int = Field(default=0, ge=0, description="Number of files.")
    revision: Text = Field(default="", description="Commit it was mirrored from.")
    target: Text = Field(
        default="",
        description="What spec.source stands for there: a digest, or a tag of commit, include and exclude.",
    )


class MirrorStatus(ApiModel):
    """Progress of a mirror that runs or is tried again. Progress is written at most every 10 s."""

    bytes_done: int = Field(default=0, ge=0, description="Bytes in the registry so far. Unit: bytes.")
    bytes_total: int = Field(default=0, ge=0, description="Bytes to mirror, 0 while unknown. Unit: bytes.")
    files_done: int = Field(default=0, ge=0, description="Files in the registry so far.")
    files_total: int = Field(default=0, ge=0, description="Files to mirror, 0 while unknown.")
    file: Text = Field(default="", description="A file that is being sent now.")
    phase: Text = Field(default="", description="What the mirror is doing, in its own words.")
    attempt: int = Field(default=0, ge=0, description="Which try this is.")
    job: Text = Field(default="", description="Name of the mirror Job, in the operator's namespace.")
    next_attempt: Text | None = Field(
        default=None,
        description="When a failed mirror is tried again, RFC 3339. Example: '2026-01-31T12:00:00Z'",
    )


class PlacementStatus(ApiModel):
    """What the planner chose, and why."""

    tensor: int = Field(default=0, ge=0, description="Tensor parallelism in use. Unit: accelerators.")
    pipeline: int = Field(default=0, ge=0, description="Pipeline stages in use.")
    data: int = Field(default=0, ge=0, description="Data-parallel ranks of a replica.")
    expert: bool = Field(default=False, description="Whether experts are spread over the accelerators.")
    replicas: int = Field(default=0, ge=0, description="Copies of the model.")
    accelerators_per_worker: int = Field(default=0, ge=0, description="Accelerators in each worker pod.")
    workers: int = Field(default=0, ge=0, description="Worker pods of a replica.")
    nodes: list[Text] = Field(
        default_factory=list,
        max_length=64,
        description="Nodes that could take the workers when this was chosen (at most 64).",
    )
    why: LongText = Field(default="", description="Why this and nothing else, in sentences.")


class EgressStatus(ApiModel):
    """What the probe found about ways out."""

    policy_hash: Text = Field(default="", description="Hash of the network policies in force.")
    probe_hash: Text = Field(
        default="",
        description=(
            "What the verdict is about: a hash of the policies, the image and the targets and, after a dot, "
            "one of the nodes and of others' policies. Empty after a policy was missing: it has to be proven "
            "anew."
        ),
    )
    verdict: Text = Field(
        default="", description="What the last probe said, as a reason of EgressSealed. Example: Sealed"
    )
    message: Text = Field(default="", description="The same in a sentence.")
    in_a_row: int = Field(
        default=0, ge=0, description="How many probes in a row said so. A leak is confirmed by the second."
    )
    unanswered: int = Field(
        default=0,
        ge=0,
        description="How many probes in a row proved nothing since then. What was proven to leak still does.",
    )
    last_probe: Text | None = Field(
        default=None, description="When the last probe ended, RFC 3339. Example: '2026-01-31T12:00:00Z'"
    )
    run: Text = Field(default="", description="Id of the last probe, an annotation of its Jobs.")
    node: Text = Field(default="", description="Node that the last probe was tried on.")
    settled_seconds: Text = Field(
        default="",
        description=(
            "How long the network took to enforce the policies for a new pod. Unit: seconds. Example: '0.4'"
        ),
    )
    denied: int = Field(default=0, ge=0, description="Paths that were denied inside and open outside.")
    unprovable: list[Text] = Field(
        default_factory=list,
        max_length=48,
        description="Paths that the unsealed control could not reach either: nothing is known about them.",
    )
    findings: list[Text] = Field(
        default_factory=list,
        max_length=48,
        description=(
            "Paths that were reached from inside, and what was not tried. own-node is no leak: no policy "
            "covers it. rdma: the workers have RDMA devices, which neither policies nor the probe cover."
        ),
    )
    isolated: bool = Field(
        default=False,
        description=(
            "Whether the pods were stopped after a proven leak. Released by a new value of the annotation "
            "sovereign.dev/release-isolation."
        ),
    )
    released: Text = Field(default="", description="The value of that annotation which is used up.")
    mirror_exception: Text = Field(
        default="",
        description="What a mirror Job may reach outside the cluster while it runs. Model pods never may.",
    )


class DeliveryNode(ApiModel):
    """One node that is to have the weights, or the head's few files of them."""

    name: Annotated[str, StringConstraints(max_length=253)] = Field(description="Name of the node.")
    state: Literal["Ready", "Fetching", "Pending", "Failed", "Lost"] = Field(
        description="Ready: complete and verified. Lost: the node is gone or not ready."
    )
    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", description="The same in one word of the data plane or of Distributed. Example: CacheFull"
    )
    message: Annotated[str, StringConstraints(max_length=256)] = Field(
        default="", description="The same in a sentence, cut to 256 characters."
    )
    bytes_done: int = Field(default=0, ge=0, description="Bytes on the node so far. Unit: bytes.")
    bytes_total: int = Field(default=0, ge=0, description="Bytes wanted there, 0 while unknown. Unit: bytes.")
    attempt: int = Field(default=0, ge=0, description="Which try this is.")
    next_attempt: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None,
        description="When a failed fetch is tried again, RFC 3339. Example: '2026-01-31T12:00:00Z'",
    )


class DeliveryStatus(ApiModel):
    """How far the weights have come to the nodes. Progress is written at most every 10 s."""

    mode: Literal["ephemeral", "nodeCache"] = Field(description="How they are delivered.")
    nodes_ready: int = Field(default=0, ge=0, description="Nodes that have them.")
    nodes_wanted: int = Field(default=0, ge=0, description="Nodes that need them.")
    bytes_done: int = Field(default=0, ge=0, description="Bytes on these nodes so far. Unit: bytes.")
    bytes_total: int = Field(default=0, ge=0, description="Bytes wanted on these nodes. Unit: bytes.")
    rate: int = Field(default=0, ge=0, description="How fast they come now. Unit: bytes per second.")
    nodes: list[DeliveryNode] = Field(
        default_factory=list,
        max_length=64,
        description="Each of these nodes (at most 64, those that are not ready first).",
    )


class SovereignModelStatus(ApiModel):
    """What is."""

    observed_generation: int = Field(
        default=0, ge=0, description="The metadata.generation that this status describes."
    )
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="Statements about the model, one per type."
    )
    model: Text = Field(
        default="", description="What is asked for, short. Example: mistralai/Mixtral-8x7B-v0.1@41bd4c9"
    )
    artifact: ArtifactStatus | None = Field(
        default=None, description="The artifact in the in-cluster registry."
    )
    serving_artifact: Text = Field(
        default="",
        description=(
            "Digest that is served now, or was last; differs from artifact.digest while a new revision is "
            "being prepared."
        ),
    )
    mirror: MirrorStatus | None = Field(default=None, description="Progress of a running mirror.")
    placement: PlacementStatus | None = Field(default=None, description="What the planner chose, and why.")
    delivery: DeliveryStatus | None = Field(
        default=None, description="Which nodes have the weights, where delivery.mode is nodeCache."
    )
    egress: EgressStatus | None = Field(default=None, description="What is known about ways out.")
    endpoint: Text = Field(
        default="",
        description=(
            "OpenAI-compatible base address inside the cluster. Example: "
            "http://x-serve-svc.models.svc:8000/v1"
        ),
    )
    ready_replicas: int = Field(default=0, ge=0, description="Copies of the model that answer now.")
    replicas: int = Field(default=0, ge=0, description="Copies of the model that are wanted.")
    selector: Text = Field(
        default="", description="Label selector of the model's pods. Example: sovereign.dev/model=mixtral"
    )
