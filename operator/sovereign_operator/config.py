# SPDX-License-Identifier: Apache-2.0
"""What the platform team decided once for the whole cluster: the operator's configuration file.

The chart renders it into the ConfigMap `sovereign-operator-config`; `main.py` loads it at start and passes
the value on. Builders and the planner take it as an argument, nothing reads it from a global.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from sovereign_airgap.probe.plan import MOST_TARGETS, ProbePlan, Protocol, Target

CONFIG_ENVIRONMENT: Final = "SOVEREIGN_CONFIG"
DEFAULT_CONFIG_PATH: Final = Path("/etc/sovereign/config.yaml")


class ConfigModel(BaseModel):
    """camelCase in the file; a misspelt key is an error at start, not a setting without effect."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


# The shortest prefix that still says where something is, by address family.
WIDEST_PREFIX: Final = {4: 8, 6: 32}
# IPv4 written as IPv6: network plugins may take it for the IPv4 addresses, whatever the prefix says.
MAPPED: Final = IPv6Network("::ffff:0:0/96")


def _network(cidr: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(cidr, strict=False)
    except ValueError:
        raise ValueError(f"Expected an address range such as 10.1.0.0/16, found {cidr}.") from None


def _is_a_place(network: IPv4Network | IPv6Network) -> bool:
    mapped = isinstance(network, IPv6Network) and network.overlaps(MAPPED)
    return network.prefixlen >= WIDEST_PREFIX[network.version] and not mapped


class RegistryConfig(ConfigModel):
    """The in-cluster registry: two listeners over one volume."""

    host: str = Field(description="Read-only listener, as pods reach it (host:port).")
    writer: str = Field(description="Authenticated listener for the mirror Job (host:port).")
    plain_http: bool = False
    ca_config_map: str | None = Field(
        default=None,
        description="ConfigMap with ca.crt, in the system namespace and in each model namespace.",
    )
    cidrs: tuple[str, ...] = Field(
        default=(), description="Addresses of a registry outside the cluster, for the policies of model pods."
    )
    push_secret: str = Field(
        default="sovereign-registry-push", description="Docker config JSON Secret in the system namespace."
    )

    @field_validator("cidrs")
    @classmethod
    def _are_where_it_is(cls, cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """Sorted, and as the API server spells them. Raises ValueError where one is half the internet."""
        networks = [_network(cidr) for cidr in cidrs]
        for network in networks:
            if not _is_a_place(network):
                raise ValueError(
                    f"Expected the addresses of the registry, at most a /{WIDEST_PREFIX[4]} of IPv4 or a "
                    f"/{WIDEST_PREFIX[6]} of IPv6, found {network}, where every model pod could go: write "
                    "the registry's own."
                )
        return tuple(sorted({str(network) for network in networks}))


class ExternalSources(ConfigModel):
    """Whether models may be mirrored from a hub at all."""

    allowed: bool = False
    endpoint: str = "https://huggingface.co"
    ca_config_map: str | None = Field(
        default=None,
        description="ConfigMap with ca.crt in the system namespace, for a hub with a private CA.",
    )

    extra_ports: tuple[int, ...] = Field(
        default=(), description="TCP ports that the hub redirects to, besides its own and 443."
    )
    cidrs: tuple[str, ...] = Field(
        default=(),
        description="Addresses that the pod of a mirror Job may reach while it runs. Empty: the operator "
        "opens no way out, and mirror pods have what other policies of their namespace leave them.",
    )

    @field_validator("cidrs")
    @classmethod
    def _are_networks(cls, cidrs: tuple[str, ...]) -> tuple[str, ...]:
        """Sorted, and as the API server spells them. Raises ValueError where one is no address range."""
        return tuple(sorted({str(_network(cidr)) for cidr in cidrs}))

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that a mirror pod needs: the endpoint's own, and those that it redirects to."""
        parts = urlsplit(self.endpoint)
        own = parts.port or (80 if parts.scheme == "http" else 443)
        return tuple(sorted({own, 443, *self.extra_ports}))


class ImagesConfig(ConfigModel):
    airgap: str = Field(description="Data plane image of mirror Jobs and init containers.")
    require_digest: bool = Field(default=True, description="Refuse serving images that are named by a tag.")


class PodGroup(ConfigModel):
    """Pods of the platform that policies name: a namespace and labels."""

    namespace: str
    pod_labels: dict[str, str] = Field(default_factory=dict)


class KubeRayConfig(PodGroup):
    namespace: str = "kuberay-system"
    pod_labels: dict[str, str] = Field(default_factory=lambda: {"app.kubernetes.io/name": "kuberay-operator"})
    ray_version: str = Field(
        default="2.60.0",
        description="Ray version of the serving images; KubeRay wants it for token authentication.",
    )


class DnsConfig(PodGroup):
    namespace: str = "kube-system"
    pod_labels: dict[str, str] = Field(default_factory=lambda: {"k8s-app": "kube-dns"})
    ports: tuple[int, ...] = Field(default=(53,), description="Ports on which the resolver's pods listen.")
    cluster_ip: str | None = Field(
        default=None,
        description="Address of a sealed resolver, which model pods then use instead of the cluster's DNS.",
    )


class PrometheusConfig(ConfigModel):
    namespace: str | None = Field(
        default=None, description="Namespace that may scrape port 8080; none may if unset."
    )


class RegistryPods(ConfigModel):
    """The registry's pods, for policies. Unset: it runs outside the cluster, at `registry.cidrs`."""

    namespace: str | None = None
    labels: dict[str, str] = Field(default_factory=lambda: {"app.kubernetes.io/name": "sovereign-registry"})


# Targets that the operator adds to every probe: the prober's own node, and the API server.
OWN_NODE: Final = "own-node"
API_SERVER: Final = "api-server"
# A finding beside those that a probe reached, so no target has this name: see `rdma.py`.
RDMA: Final = "rdma"


class ProbeTarget(ConfigModel):
    """One way out that a probe tries; which of the fields it has follows from its protocol."""

    name: str
    protocol: Protocol
    address: str | None = None
    port: int | None = None
    query: str | None = None

    def target(self) -> Target:
        """Raises ValueError where a field is missing, surplus or wrong."""
        return Target(self.name, self.protocol, self.address, self.port, self.query)


class ProbeConfig(ConfigModel):
    """What is tried from inside the seal, and how often."""

    canary: str | None = Field(
        default=None,
        description="DNS name of the canary's Service. Unset: nothing is probed, so nothing is ever proven.",
    )
    targets: tuple[ProbeTarget, ...] = Field(
        default=(), description="Ways out that are tried, besides the API server and the own node."
    )
    interval_seconds: int = Field(default=21600, ge=1, description="How long a proof is good for.")
    timeout_seconds: float = Field(default=2, description="How long one attempt waits for an answer.")
    settle_seconds: float = Field(default=10, description="How long enforcement may lag behind a new pod.")
    deadline_seconds: int = Field(
        default=120, ge=1, description="After this a probe without a result proved nothing."
    )

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        """A target that no prober would take is an error at start."""
        own = (Target(OWN_NODE, Protocol.ICMP, "node"), Target(API_SERVER, Protocol.ICMP, "node"))
        given = tuple(target.target() for target in self.targets)
        if RDMA in (target.name for target in given):
            raise ValueError(f"Expected a target with another name, found {RDMA}: it is a finding's own.")
        if len(given) > MOST_TARGETS - len(own):
            raise ValueError(f"Expected at most {MOST_TARGETS - len(own)} targets, found {len(given)}.")
        ProbePlan("0", self.timeout_seconds, self.settle_seconds, self.canary, None, (*given, *own)).render()
        return self


class NodeCacheConfig(ConfigModel):
    """A folder on every node that keeps weights for the pods of that node."""

    claim: str = Field(
        default="sovereign-cache",
        description="PersistentVolumeClaim in each model namespace that shows the namespace's own part.",
    )
    path: str = Field(default="/var/lib/sovereign/cache", description="The folder, on the node.")
    budget_bytes: int = Field(
        default=0, ge=0, description="How much of a node's disk it may take; 0: what its file system has."
    )
    reserve_bytes: int = Field(default=10 * 1024**3, ge=0, description="How much of it stays free.")
    scrub_interval_seconds: int = Field(
        default=604800, ge=0, description="How often what is in use is hashed again; 0: never."
    )

    @field_validator("path")
    @classmethod
    def _is_a_folder_of_its_own(cls, path: str) -> str:
        """Raises ValueError where fetch Jobs would be given the node itself."""
        parts = path.split("/")
        if not path.startswith("/") or len(parts) < 3 or {"", ".", ".."} & set(parts[1:]):
            raise ValueError(f"Expected an absolute path such as /var/lib/sovereign/cache, found {path}.")
        return path


class OperatorConfig(ConfigModel):
    """The whole file."""

    system_namespace: str = "sovereign-system"
    watch_namespaces: tuple[str, ...] = Field(default=(), description="Empty: all namespaces (cluster mode).")
    registry: RegistryConfig
    external_sources: ExternalSources = Field(default_factory=ExternalSources)
    images: ImagesConfig
    seal: Literal["Report", "Required"] = "Required"
    admission: bool = Field(
        default=False,
        description="Whether the chart's admission policies are there: namespaces with models must then "
        "carry their label.",
    )
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    node_cache: NodeCacheConfig | None = Field(
        default=None, description="Unset: no model may ask for delivery.mode nodeCache."
    )
    product_label: str = "nvidia.com/gpu.product"
    kuberay: KubeRayConfig = Field(default_factory=KubeRayConfig)
    dns: DnsConfig = Field(default_factory=DnsConfig)
    prometheus: PrometheusConfig = Field(default_factory=PrometheusConfig)
    registry_pods: RegistryPods = Field(default_factory=RegistryPods)
    cluster_domain: str = "cluster.local"
    resync_seconds: int = Field(default=300, ge=1)
    deletion_seconds: int = Field(
        default=600,
        ge=1,
        description="How long a deletion waits for the model's pods before it lets go and leaves the "
        "policies.",
    )


def parse_config(text: str) -> OperatorConfig:
    """The configuration from YAML. Raises pydantic.ValidationError with the path of each wrong key."""
    return OperatorConfig.model_validate(yaml.safe_load(text) or {})


def load_config(environment: Mapping[str, str] = os.environ) -> OperatorConfig:
    """The configuration from the file that SOVEREIGN_CONFIG names, or from its usual place."""
    return parse_config(
        Path(environment.get(CONFIG_ENVIRONMENT, str(DEFAULT_CONFIG_PATH))).read_text(encoding="utf-8")
    )
