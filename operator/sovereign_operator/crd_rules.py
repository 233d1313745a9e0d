# SPDX-License-Identifier: Apache-2.0
"""The rules between fields that the API server itself enforces: CEL, with a message for the user each.

`crd.py` puts them into the schema at their paths. A message is one sentence: what was expected, what was
found where that helps, what to do. A rule that mentions `oldSelf` is a transition rule and runs on updates
only. The API server limits what rules may cost by estimate, so everything that a rule walks has a bound in
the schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovereign_operator.api import MAX_NAME_LENGTH, RESERVED_ENGINE_ARG_PREFIX, RESERVED_ENGINE_ARGS

DNS_LABEL: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN: Final = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
# A resource of a device plugin, with its domain.
QUALIFIED_RESOURCE: Final = (
    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$')"
)
# A repository inside the in-cluster registry: lower-case path components, and no first component that is a
# host.
PINNED_REFERENCE: Final = (
    "^[a-z0-9]+((_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+@sha256:[0-9a-f]{64}$"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One validation rule. `name` is for tests, `path` is the field that the rule is attached to."""

    name: str
    path: str
    rule: str
    message: str
    # Computed by the API server where the message should quote what it found; `message` is the fallback.
    message_expression: str = ""

    def as_schema(self) -> dict[str, str]:
        schema = {"rule": self.rule, "message": self.message}
        if self.message_expression:
            schema["messageExpression"] = self.message_expression
        return schema


def _quoting(before: str, found: str, after: str) -> str:
    """A CEL string expression: a sentence with a quoted value in it."""
    return f'"{before}\'" + {found} + "\'{after}"'


def _reserved(key: str) -> str:
    names = ", ".join(f"'{name}'" for name in RESERVED_ENGINE_ARGS)
    return f"{key}.startsWith('{RESERVED_ENGINE_ARG_PREFIX}') || {key} in [{names}]"


OBJECT_RULES: Final = (
    Rule(
        "name-is-short",
        "",
        f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
        f"metadata.name must have at most {MAX_NAME_LENGTH} characters, because Ray adds to it; shorten it",
    ),
    Rule(
        "name-is-a-service-name",
        "",
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must be lower-case letters, digits and hyphens and begin with a letter, because it "
        "becomes part "
        "of a Service's name; replace dots by hyphens",
    ),
    Rule(
        "adapters-are-not-named-like-the-model",
        "",
        "!has(self.spec.serving.adapters) || self.spec.serving.adapters.all(a, a.name != self.metadata.name)",
        "an adapter must not have the name of the model, because clients choose between them by name; rename"
        " the adapter",
    ),
)

SOURCE_RULES: Final = (
    Rule(
        "exactly-one-source",
        "spec.source",
        "has(self.huggingFace) != has(self.artifact)",
        "source must have exactly one of huggingFace and artifact; set one and remove the other",
    ),
    Rule(
        "source-kind-is-immutable",
        "spec.source",
        "has(self.huggingFace) == has(oldSelf.huggingFace)",
        "the kind of source cannot change after creation; create another SovereignModel for the other source",
    ),
    Rule(
        "repo-is-owner-and-name",
        "spec.source.huggingFace.repo",
        "self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$') "
        "&& !self.contains('--') && !self.contains('..')",
        "repo must be owner/name as the hub shows it, for example mistralai/Mixtral-8x7B-v0.1",
        _quoting("repo must be owner/name as the hub shows it, found ", "self", ""),
    ),
    Rule(
        "repo-is-immutable",
        "spec.source.huggingFace.repo",
        "self == oldSelf",
        "repo cannot change after creation, only its revision can; create another SovereignModel for another"
        " repository",
    ),
    Rule(
        "revision-is-a-commit",
        "spec.source.huggingFace.revision",
        "self.matches('^[0-9a-f]{40}$')",
        "revision must be a commit of 40 lower-case hex digits; look up the commit of the branch or tag",
        _quoting(
            "revision must be a commit of 40 lower-case hex digits, found ",
            "self",
            "; branches and tags move, so look up the commit",
        ),
    ),
    Rule(
        "include-stays-inside",
        "spec.source.huggingFace.include",
        "self.all(g, !g.startsWith('/') && !g.contains('..'))",
        "include patterns are relative to the repository; remove the leading slash or the '..'",
    ),
    Rule(
        "exclude-stays-inside",
        "spec.source.huggingFace.exclude",
        "self.all(g, !g.startsWith('/') && !g.contains('..'))",
        "exclude patterns are relative to the repository; remove the leading slash or the '..'",
    ),
    Rule(
        "token-secret-has-a-name",
        "spec.source.huggingFace.tokenSecretRef",
        f"self.name.matches('{DNS_SUBDOMAIN}')",
        "tokenSecretRef must name a Secret in the model's namespace; set name, or leave tokenSecretRef out",
    ),
    Rule(
        "artifact-is-pinned",
        "spec.source.artifact.reference",
        f"self.matches('{PINNED_REFERENCE}')",
        "reference must be models/org/name@sha256:<64 hex digits>, without a host or tag; look up the digest",
        _quoting(
            "reference must be models/org/name@sha256:<64 hex digits>, without a host or tag, found ",
            "self",
            "; look up the digest",
        ),
    ),
    Rule(
        "artifact-repository-is-immutable",
        "spec.source.artifact.reference",
        "self.split('@')[0] == oldSelf.split('@')[0]",
        "the repository of an artifact cannot change after creation, only its digest can; create another "
        "SovereignModel",
    ),
    Rule(
        "keys-secret-has-a-name",
        "spec.verification.keysSecretRef",
        f"self.name.matches('{DNS_SUBDOMAIN}')",
        "keysSecretRef must name a Secret in the model's namespace; set name, or leave keysSecretRef out",
    ),
    Rule(
        "threshold-needs-keys",
        "spec.verification",
        "self.threshold == 1 || has(self.keysSecretRef)",
        "threshold counts signatures by the keys in keysSecretRef; set keysSecretRef or remove threshold",
    ),
)

SERVING_RULES: Final = (
    Rule(
        "image-is-versioned",
        "spec.serving.image",
        r"self.matches('^[a-zA-Z0-9][a-zA-Z0-9._:/-]*(:[\\w][\\w.-]*|@sha256:[0-9a-f]{64})$')",
        "image must end in @sha256:<64 hex digits> or, where the operator allows it, in a tag",
        _quoting(
            "image must end in @sha256:<64 hex digits> or, where the operator allows it, in a tag, found ",
            "self",
            "",
        ),
    ),
    Rule(
        "expert-parallelism-needs-accelerators",
        "spec.serving.parallelism",
        "!self.expert || self.tensor * self.data > 1",
        "expert parallelism spreads experts over tensor x data accelerators, and that is 1 here; raise one "
        "of them or remove expert",
    ),
    Rule(
        "redundant-experts-need-expert",
        "spec.serving.parallelism",
        "self.redundantExperts == 0 || self.expert",
        "redundantExperts are copies for expert parallelism; set expert: true or remove redundantExperts",
    ),
    Rule(
        "all-to-all-needs-expert",
        "spec.serving.parallelism",
        "!has(self.allToAll) || (self.expert && self.data > 1)",
        "allToAll chooses how data-parallel ranks exchange tokens between experts; set expert: true and data "
        "above 1, or "
        "remove allToAll",
    ),
    Rule(
        "cpu-has-no-pipeline",
        "spec.serving",
        "self.device != 'cpu' || !has(self.parallelism) || self.parallelism.pipeline == 1",
        "with device: cpu a rank lives in one process, so pipeline must be 1; remove pipeline",
    ),
    Rule(
        "cpu-has-no-gpu-kernels",
        "spec.serving",
        "self.device != 'cpu' || !has(self.parallelism) || (self.parallelism.redundantExperts == 0 && "
        "(!has(self.parallelism.allToAll) || self.parallelism.allToAll == 'allgather_reducescatter'))",
        "with device: cpu there is no expert load balancing and only allToAll: allgather_reducescatter; "
        "remove the others",
    ),
    Rule(
        "engine-arguments-are-python-names",
        "spec.serving.engineArgs",
        "self.all(k, k.matches('^[a-z][a-z0-9_]*$'))",
        "engineArgs uses vLLM's Python names, lower case with underscores: max_num_seqs, not --max-num-seqs",
    ),
    Rule(
        "reserved-engine-arguments-are-refused",
        "spec.serving.engineArgs",
        f"self.all(k, !({_reserved('k')}))",
        "engineArgs must not set what the operator sets itself or what could reach outside or run unreviewed "
        "code, such as "
        "model, trust_remote_code, host or tensor_parallel_size; use the fields of spec, or remove it",
    ),
    Rule(
        "engine-arguments-are-scalars",
        "spec.serving.engineArgs",
        "self.all(k, !self[k].matches('^\\\\s*[\\\\[{&*!|>%@`]') && !self[k].contains('\\n'))",
        "each value of engineArgs must be a string that holds one YAML scalar, for example 'true' or '0.92',"
        " not a list or a map",
    ),
    Rule(
        "adapters-have-plain-names",
        "spec.serving.adapters",
        "self.all(a, a.name.matches('^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$'))",
        "an adapter's name must be lower-case letters, digits, dots, underscores and hyphens, because "
        "clients put it into requests",
    ),
    Rule(
        "adapters-are-pinned",
        "spec.serving.adapters",
        f"self.all(a, a.reference.matches('{PINNED_REFERENCE}'))",
        "an adapter's reference must be models/org/name@sha256:<64 hex digits>, without a host or tag; look "
        "up its "
        "digest",
    ),
)

RDMA_RULES: Final = (
    Rule(
        "rdma-resource-is-qualified",
        "spec.serving.rdma.resource",
        QUALIFIED_RESOURCE,
        "rdma.resource must be an extended resource with its domain, as nodes report it, for example "
        "rdma/hca_shared_devices_a",
        _quoting("rdma.resource must be an extended resource with its domain, found ", "self", ""),
    ),
    Rule(
        "rdma-is-for-accelerators",
        "spec.serving",
        "self.device != 'cpu' || !has(self.rdma)",
        "with device: cpu the workers have no use for RDMA; remove rdma",
    ),
    Rule(
        "rdma-is-not-the-accelerator",
        "spec",
        "!has(self.serving.rdma) || self.serving.rdma.resource != self.placement.accelerator.resource",
        "serving.rdma.resource and placement.accelerator.resource must differ, because one pod counts both; "
        "name the network device in rdma",
    ),
)

PLACEMENT_RULES: Final = (
    Rule(
        "tensor-parallelism-fits-a-node",
        "spec",
        "!has(self.serving.parallelism) || !has(self.placement.accelerator.perNode) "
        "|| self.serving.parallelism.tensor <= self.placement.accelerator.perNode",
        "tensor parallelism must fit into one node (placement.accelerator.perNode); lower tensor, or span "
        "nodes with pipeline or data",
    ),
    Rule(
        "accelerator-resource-is-qualified",
        "spec.placement.accelerator.resource",
        QUALIFIED_RESOURCE,
        "resource must be an extended resource with its domain, as nodes report it, for example "
        "nvidia.com/gpu",
    ),
    Rule(
        "toleration-compares-something",
        "spec.placement.tolerations",
        "self.all(t, has(t.key) || t.operator == 'Exists')",
        "a toleration without key needs operator: Exists; set the key of the taint",
    ),
    Rule(
        "toleration-exists-has-no-value",
        "spec.placement.tolerations",
        "self.all(t, t.operator == 'Equal' || !has(t.value))",
        "a toleration with operator: Exists accepts every value; remove value or use operator: Equal",
    ),
    Rule(
        "client-namespace-is-a-name",
        "spec.network.clients",
        f"self.all(c, !has(c.__namespace__) || c.__namespace__.matches('{DNS_LABEL}'))",
        "a client's namespace must be the name of one namespace; wildcards and selectors are not supported",
    ),
)

RULES: Final = OBJECT_RULES + SOURCE_RULES + SERVING_RULES + RDMA_RULES + PLACEMENT_RULES
