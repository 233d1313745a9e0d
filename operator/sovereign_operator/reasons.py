# SPDX-License-Identifier: Apache-2.0
"""Every word that users meet in conditions and events, one constant each, with the scenario that shows it.

Programs match on these, so a constant is never renamed. The data plane's own reasons (`DigestMismatch`,
`SourceForbidden`, …, see `sovereign_airgap.errors`) are passed through as they are: the mirror Job reports
them in its result and they become the reason of `Mirrored`.
"""

from __future__ import annotations

from typing import Final

# --- condition types ----------------------------------------------------------------------------------------
# kstatus: Reconciling and Stalled are never both True, and both are absent when Ready.
READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
# Stages, in the order in which a model passes them.
VERIFIED: Final = "Verified"
MIRRORED: Final = "Mirrored"
PLACED: Final = "Placed"
# Only with delivery.mode nodeCache.
DISTRIBUTED: Final = "Distributed"
SERVING: Final = "Serving"
EGRESS_SEALED: Final = "EgressSealed"

STAGES: Final = (MIRRORED, VERIFIED, PLACED, DISTRIBUTED, EGRESS_SEALED, SERVING)
CONDITION_TYPES: Final = (READY, RECONCILING, STALLED, *STAGES)

# --- any condition ------------------------------------------------------------------------------------------
# The object is new: nothing was looked at yet. Written first, so that no tool shows a false green.
NOT_OBSERVED: Final = "NotObserved"
# An earlier stage is not through, so this one has nothing to say yet.
WAITING: Final = "Waiting"
# spec.suspend is true: pods are gone or going, everything else is kept.
SUSPENDED: Final = "Suspended"
# The object is being deleted and its children go in order.
DELETING: Final = "Deleting"

# --- Ready --------------------------------------------------------------------------------------------------
# Mirrored, verified, placed and serving, as far as this operator's configuration asks for it.
ALL_CHECKS_PASSED: Final = "AllChecksPassed"

# --- Stalled: nothing changes until a person does something -------------------------------------------------
# A huggingFace source, but the operator's configuration allows no external sources.
EXTERNAL_SOURCE_FORBIDDEN: Final = "ExternalSourceForbidden"
# serving.image names a tag and the operator's configuration wants digests.
IMAGE_NOT_PINNED: Final = "ImageNotPinned"
# The stored object is older or newer than this operator understands, or an engine argument is no YAML scalar.
SPEC_INVALID: Final = "SpecInvalid"
# tokenSecretRef names a Secret or key that is not there.
TOKEN_SECRET_MISSING: Final = "TokenSecretMissing"  # noqa: S105  (a reason, not a password)
# delivery.mode nodeCache, but the operator's configuration has no nodeCache (chart value nodeCache.enabled).
DELIVERY_MODE_UNAVAILABLE: Final = "DeliveryModeUnavailable"
# LoRA adapters are wanted: this version does not deliver them yet.
ADAPTERS_UNAVAILABLE: Final = "AdaptersUnavailable"
# Three applies in ten minutes did not converge: another field manager keeps writing the same fields.
FIELD_CONFLICT: Final = "FieldConflict"
# The API server refused one of our children (quota, admission policy, Pod Security).
APPLY_REFUSED: Final = "ApplyRefused"
# A way out was proven twice while the model served: its pods were stopped, and stay so until somebody sets
# the annotation sovereign.dev/release-isolation to a new value.
ISOLATED: Final = "Isolated"

# --- Mirrored -----------------------------------------------------------------------------------------------
# Every file of the commit is in the in-cluster registry, its digest checked, and the commit's tag names it.
ARTIFACT_MIRRORED: Final = "Mirrored"
# The mirror Job is running; status.mirror has its progress.
MIRRORING: Final = "Mirroring"
# The mirror Job exists and its pod does not run yet (image, scheduling, quota); the message says what it
# waits for.
MIRROR_PENDING: Final = "MirrorPending"
# The mirror Job ended without a result (evicted, out of memory, over its deadline); it is tried again with
# backoff.
MIRROR_FAILED: Final = "MirrorFailed"
# An artifact source names a digest that the in-cluster registry does not have.
ARTIFACT_NOT_FOUND: Final = "ArtifactNotFound"
# The in-cluster registry does not answer the operator.
REGISTRY_UNAVAILABLE: Final = "RegistryUnavailable"
# The artifact's manifest is not one that we would have written (wrong type, no files, unsafe names).
ARTIFACT_MALFORMED: Final = "ArtifactMalformed"

# --- Verified -----------------------------------------------------------------------------------------------
# Digests were checked while mirroring, and no signatures were asked for.
DIGESTS_VERIFIED: Final = "DigestsVerified"
# As many of the keys in keysSecretRef as the threshold asks for have signed this very digest; the message
# names them.
SIGNATURES_VERIFIED: Final = "SignaturesVerified"
# Too few of the keys in keysSecretRef have signed the artifact. Noticed by itself when they do.
NOT_SIGNED: Final = "NotSigned"
# A signature by one of these keys is damaged, or over another artifact, and too few others are left.
SIGNATURE_INVALID: Final = "SignatureInvalid"
# The Secret of keysSecretRef is missing, has an entry that is no public key of ours, or fewer keys than the
# threshold asks for.
KEYS_UNUSABLE: Final = "KeysUnusable"

# --- Placed -------------------------------------------------------------------------------------------------
# Nodes for all workers exist; status.placement says what was chosen and why.
PLACEMENT_CHOSEN: Final = "Placed"
# No node has the product, the labels or the resource that was asked for. Placed by itself when one appears.
NO_MATCHING_NODES: Final = "NoMatchingNodes"
# Matching nodes exist, but fewer accelerators than the model needs, or not enough on one node.
INSUFFICIENT_ACCELERATORS: Final = "InsufficientAccelerators"
# The weights and one sequence do not fit the memory of the accelerators that were asked for.
INSUFFICIENT_MEMORY: Final = "InsufficientAcceleratorMemory"
# The model's architecture runs only with code from its repository, which is never run here.
REMOTE_CODE_REQUIRED: Final = "RemoteCodeRequired"
# The parallelism asked for does not work for this model (tensor does not divide its heads, experts on a dense
# model).
PARALLELISM_IMPOSSIBLE: Final = "ParallelismImpossible"
# The artifact has no facts yet, and the planner has to choose the parallelism itself.
FACTS_MISSING: Final = "FactsMissing"

# --- Distributed --------------------------------------------------------------------------------------------
# Every node that workers or the head need has the weights, complete and verified.
WEIGHTS_DISTRIBUTED: Final = "Distributed"
# Fetch Jobs bring the weights to nodes; status.delivery has their progress.
FETCHING: Final = "Fetching"
# A fetch Job exists and its pod does not run yet (image, scheduling, quota); the message says what it waits
# for.
FETCH_PENDING: Final = "FetchPending"
# A fetch Job ended without a result (evicted, out of memory, over its deadline); it is tried again with
# backoff.
FETCH_FAILED: Final = "FetchFailed"
# In status.delivery.nodes: the node has the weights.
FETCHED: Final = "Fetched"
# In status.delivery.nodes: the node has the weights, and something damaged was brought anew when they were
# last looked at. The message names the files.
CACHE_REPAIRED: Final = "CacheRepaired"
# A node was lost while it fetched, or has pods of the model and is gone or not ready. Where another node can
# take its place, that one is fetched to.
NODE_LOST: Final = "NodeLost"

# --- Serving ------------------------------------------------------------------------------------------------
# All replicas answer, and the cluster that serves carries what we rendered.
REPLICAS_READY: Final = "ReplicasReady"
# The RayService exists and its pods start: pulling images, pulling weights, loading them.
STARTING: Final = "Starting"
# It served before and some replicas do not answer now.
REPLICAS_MISSING: Final = "ReplicasMissing"
# The API server refused KubeRay a model pod: quota, admission policy, or pod security (RDMA needs
# `privileged`).
PODS_REFUSED: Final = "PodsRefused"
# A model pod cannot be scheduled; the message is the scheduler's.
UNSCHEDULABLE: Final = "Unschedulable"
# A model pod's image cannot be pulled; the message is the kubelet's.
IMAGE_PULL_FAILED: Final = "ImagePullFailed"
# A model pod's init container could not pull or verify the weights, or did not find them in the node's cache;
# the message is the data plane's.
DELIVERY_FAILED: Final = "DeliveryFailed"
# A model pod's first init container found the canary answering or the peer silent, and holds the pod back.
POD_NOT_SEALED: Final = "PodNotSealed"
# A model pod's container ends again and again; the message names it and how it ended.
CONTAINER_CRASHING: Final = "ContainerCrashing"
# Ray Serve refused or lost the application; the message is Ray's.
APPLICATION_FAILED: Final = "ApplicationFailed"
# A changed revision, image or placement is being rolled out.
UPGRADING: Final = "Upgrading"
# The cluster has no RayService API.
KUBERAY_MISSING: Final = "KubeRayMissing"
# The cluster's KubeRay is older than 1.7: it has no token authentication or no suspend.
KUBERAY_TOO_OLD: Final = "KubeRayTooOld"

# --- EgressSealed -------------------------------------------------------------------------------------------
# A probe tried every way out from inside and was denied where an unsealed control got through; status.egress
# says when, where, and what nobody could try.
SEALED: Final = "Sealed"
# The policies are in force in the API; whether the network enforces them was not proven yet, and the message
# says what a probe waits for.
NOT_PROBED: Final = "NotProbed"
# The first probe of these policies is under way.
PROBING: Final = "Probing"
# A sealing policy is missing or differs from what we render; it is put back before anything else.
POLICY_MISSING: Final = "PolicyMissing"
# The namespace lacks the label sovereign.dev/sealed=true, so the admission policies do not guard it.
NAMESPACE_NOT_SEALED: Final = "NamespaceNotSealed"
# The probe reached its canary inside the cluster: the network plugin does not enforce policies.
POLICY_NOT_ENFORCED: Final = "PolicyNotEnforced"
# The probe reached something outside; the message names the path.
LEAK_DETECTED: Final = "LeakDetected"
# The resolver of the model pods answers for names outside the cluster, and a query can carry data.
DNS_FORWARDS: Final = "DNSForwards"
# The prober did not reach its peer, the control did not reach the canary, or one of them left no result:
# nothing was proven, and it is tried again after 30 s to 10 min.
PROBE_INCONCLUSIVE: Final = "ProbeInconclusive"
# The last proof is older than two intervals, or from the future: the clock jumped. A new probe is due.
STALE: Final = "Stale"
# NetworkPolicy never covers the pod's own node; reported beside a seal that holds otherwise.
NODE_REACHABLE: Final = "NodeReachable"
# The workers have RDMA devices (spec.serving.rdma): no policy sees that traffic and no probe tries it.
# Reported beside every verdict, which is about packets.
RDMA_NOT_COVERED: Final = "RdmaNotCovered"

# --- events (what happened, once; conditions say what is) ---------------------------------------------------
# A mirror Job was started.
EVENT_MIRROR_STARTED: Final = "MirrorStarted"
# The artifact of the wanted revision is complete in the registry.
EVENT_MIRRORED: Final = "Mirrored"
# A mirror Job failed; the message is the data plane's, and says when it is tried again.
EVENT_MIRROR_FAILED: Final = "MirrorFailed"
# A Job was started that brings weights to a node.
EVENT_FETCH_STARTED: Final = "FetchStarted"
# A node has the weights; the message is the data plane's.
EVENT_FETCHED: Final = "Fetched"
# A fetch Job failed; the message is the data plane's, and says when it is tried again.
EVENT_FETCH_FAILED: Final = "FetchFailed"
# Damaged files were found in a node's cache and brought anew; the message names them.
EVENT_REPAIRED: Final = "CacheRepaired"
# A node was lost while it fetched.
EVENT_NODE_LOST: Final = "NodeLost"
# Every node that is wanted has the weights.
EVENT_DISTRIBUTED: Final = "Distributed"
# The planner chose or changed a placement.
EVENT_PLACED: Final = "Placed"
# The model became Ready, or stopped being Ready.
EVENT_READY: Final = "Ready"
EVENT_NOT_READY: Final = "NotReady"
# A changed revision, image or placement starts to roll out, or is through.
EVENT_UPGRADE_STARTED: Final = "UpgradeStarted"
EVENT_UPGRADED: Final = "Upgraded"
# A child that somebody deleted or changed was put back.
EVENT_CHILD_RESTORED: Final = "ChildRestored"
# The model's last pod and its policies are gone.
EVENT_DELETED: Final = "Deleted"
# Deletion ran out of time with pods left: their policies stay until the resync sweeps them.
EVENT_PODS_REMAIN: Final = "PodsRemain"
# The pods were stopped after a proven leak, or somebody released them.
EVENT_ISOLATED: Final = "Isolated"
EVENT_RELEASED: Final = "IsolationReleased"
# A mirror Job with a source outside the cluster began or ended: only its pods may go there, while it runs.
EVENT_EXCEPTION_OPENED: Final = "EgressExceptionOpened"
EVENT_EXCEPTION_CLOSED: Final = "EgressExceptionClosed"
