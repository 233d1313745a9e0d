# SPDX-License-Identifier: Apache-2.0
"""The schema of the values and the operator's own reading of its configuration say yes and no to the same.

There is one operator and it is recreated: a value that the schema takes and the operator refuses leaves none.
"""

from __future__ import annotations

import copy

import pytest
import yaml
from pydantic import ValidationError

from sovereign_operator.config import parse_config
from tests.unit.charts.rendering import NAMESPACE, Manifest, refusal, render

TCP: Manifest = {"name": "x", "protocol": "TCP", "address": "192.0.2.1", "port": 443}
UDP: Manifest = {**TCP, "protocol": "UDP"}
PING: Manifest = {"name": "x", "protocol": "ICMP", "address": "192.0.2.1"}
NAME: Manifest = {"name": "x", "protocol": "RESOLVE", "query": "probe.example"}
DNS: Manifest = {
    "name": "x",
    "protocol": "DNS",
    "address": "192.0.2.53",
    "port": 53,
    "query": "probe.example",
}


def without(target: Manifest, field: str) -> Manifest:
    return {key: value for key, value in target.items() if key != field}


def targets(*several: Manifest) -> Manifest:
    return {"probe": {"targets": list(several)}}


def a_hub(*cidrs: str) -> Manifest:
    return {"externalSources": {"cidrs": list(cidrs)}}


def a_registry(*cidrs: str) -> Manifest:
    own = {"enabled": False, "host": "r.example", "writer": "r.example", "pushSecret": "push"}
    return {"registry": {**own, "cidrs": list(cidrs)}}


def a_domain(domain: str) -> Manifest:
    return {"clusterDomain": domain}


GOOD: dict[str, Manifest] = {
    "one target of each protocol": targets(
        *({**target, "name": f"x{n}"} for n, target in enumerate((TCP, UDP, PING, NAME, DNS)))
    ),
    "a target by its name": targets({**TCP, "address": "kubelet.node-2.lab.internal"}),
    "a target on IPv6": targets({**PING, "address": "2001:db8::1"}),
    "a target on the pod's own node": targets({**TCP, "address": "node", "port": 10250}),
    "a question with a dot at its end": targets({**NAME, "query": "_sip.probe.example."}),
    "a hub anywhere": a_hub("0.0.0.0/0", "::/0"),
    "a hub somewhere": a_hub("10.1.2.3/8", "2001:DB8::/32", "192.0.2.7/32", "fe80::1:2:3:4/128"),
    "a registry in the widest ranges": a_registry("10.0.0.0/8", "2001:db8::/32"),
    "a registry at two addresses": a_registry("192.0.2.7/32", "2001:db8::1:5/128"),
    "a domain of a lab": a_domain("k8s.lab-2.internal"),
    "a domain of one label": a_domain("cluster"),
}
BAD: dict[str, tuple[Manifest, str]] = {
    "TCP without an address": (targets(without(TCP, "address")), "address"),
    "TCP without a port": (targets(without(TCP, "port")), "port"),
    "UDP without an address": (targets(without(UDP, "address")), "address"),
    "UDP without a port": (targets(without(UDP, "port")), "port"),
    "TCP with a question": (targets({**TCP, "query": "probe.example"}), "query"),
    "ICMP without an address": (targets(without(PING, "address")), "address"),
    "ICMP with a port": (targets({**PING, "port": 7}), "port"),
    "RESOLVE without a question": (targets(without(NAME, "query")), "query"),
    "RESOLVE with an address": (targets({**NAME, "address": "192.0.2.53"}), "address"),
    "RESOLVE with a port": (targets({**NAME, "port": 53}), "port"),
    "DNS without a question": (targets(without(DNS, "query")), "query"),
    "DNS without an address": (targets(without(DNS, "address")), "address"),
    "DNS without a port": (targets(without(DNS, "port")), "port"),
    "a question that is no name": (targets({**NAME, "query": "who is there"}), "query"),
    "a question that is an address": (targets({**NAME, "query": "192.0.2.1"}), "query"),
    "a target at no address": (targets({**TCP, "address": "https://proxy"}), "address"),
    "a target at an address with a slip": (targets({**TCP, "address": "192.0.2.999"}), "address"),
    "a target at every address": (targets({**TCP, "address": "0.0.0.0"}), "address"),
    "a target at many addresses": (targets({**TCP, "address": "ff02::1"}), "address"),
    **{
        f"a target called {name}": (targets({**TCP, "name": name}), "name")
        for name in ("own-node", "rdma", "api-server", "canary-tcp", "peer-udp")
    },
    "two targets of one name": (targets(TCP, UDP), "occurs twice"),
    "a hub at no address": (a_hub("999.1.1.1/99"), "cidrs"),
    "a hub with too long a prefix": (a_hub("10.0.0.0/33"), "cidrs"),
    "a hub without a prefix": (a_hub("hub.example"), "cidrs"),
    "a hub at half an address": (a_hub("2001:db8:/32"), "cidrs"),
    "a registry anywhere": (a_registry("0.0.0.0/0"), "cidrs"),
    "a registry anywhere, by an address": (a_registry("1.2.3.4/0"), "cidrs"),
    "a registry anywhere, with two zeros": (a_registry("0.0.0.0/00"), "cidrs"),
    "a registry in either half": (a_registry("0.0.0.0/1", "128.0.0.0/1"), "cidrs"),
    "a registry in a range that is too wide": (a_registry("10.0.0.0/7"), "cidrs"),
    "a registry anywhere on IPv6": (a_registry("::/0"), "cidrs"),
    "a registry in half of IPv6": (a_registry("2000::/3"), "cidrs"),
    "a registry in a range of IPv6 that is too wide": (a_registry("2001:db8::/31"), "cidrs"),
    "a registry anywhere on IPv4 written as IPv6": (a_registry("::ffff:0:0/96"), "cidrs"),
    "a registry at no address": (a_registry("999.1.1.1/99"), "cidrs"),
    "a domain of words": (a_domain("my cluster"), "clusterDomain"),
    "a domain with a slash": (a_domain("cluster/local"), "clusterDomain"),
    "a domain with an empty label": (a_domain("cluster..local"), "clusterDomain"),
    "a domain that ends in a number": (a_domain("cluster.1"), "clusterDomain"),
    "a domain that is too long": (a_domain(".".join(["a" * 60] * 4)), "clusterDomain"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_the_schema_takes_the_operator_takes(case: str) -> None:
    parse_config(render(values=GOOD[case]).config())


@pytest.mark.parametrize("case", BAD)
def test_what_the_operator_refuses_the_schema_refuses(case: str) -> None:
    values, named = BAD[case]
    with pytest.raises(ValidationError):
        parse_config(as_configuration(values))
    assert named in refusal(values)


def as_configuration(values: Manifest) -> str:
    """What the template would have made of these values."""
    config = yaml.safe_load(render().config())
    for section, fields in copy.deepcopy(values).items():
        if section == "clusterDomain":
            config["probe"]["canary"] = f"sovereign-canary.{NAMESPACE}.svc.{fields}"
        else:
            fields.pop("enabled", None)
            config[section].update(fields)
    return str(yaml.safe_dump(config))


# --- what only the chart reads


SCHEDULES = ("garbageCollection", "verification", "pruning")


def a_schedule(of: str, schedule: str) -> Manifest:
    return {"registry": {of: {"enabled": True, "schedule": schedule}}}


@pytest.mark.parametrize("of", SCHEDULES)
@pytest.mark.parametrize(
    "schedule", ["@weekly", "@daily", "0 0 * * *", "*/5 1-3,22 1 JAN-MAR mon,fri", "0 0/2 ? * 0"]
)
def test_a_schedule_is_what_cron_has(of: str, schedule: str) -> None:
    jobs = {m["spec"]["schedule"] for m in render(values=a_schedule(of, schedule)).of("CronJob")}
    assert schedule in jobs


@pytest.mark.parametrize("of", SCHEDULES)
@pytest.mark.parametrize(
    "schedule", ["every week at noon", "every single week at noon", "@weekend", "0 0 * *", "0 0 * * * *", ""]
)
def test_a_schedule_that_cron_does_not_have_is_refused(of: str, schedule: str) -> None:
    assert "schedule" in refusal(a_schedule(of, schedule))


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("1Ei", 2**60),
        ("1E", 10**18),
        ("1024Ki", 2**20),
        ("500M", 500 * 10**6),
        ("500k", 500_000),
        ("1.5Gi", 3 * 2**29),
        (".5Gi", 2**29),
        ("1e12", 10**12),
        ("1E3", 1000),
        ("2Ti", 2**41),
    ],
)
def test_a_size_is_what_kubernetes_takes_and_the_operator_gets_its_bytes(quantity: str, size: int) -> None:
    sizes = {"enabled": True, "budget": quantity, "reserve": quantity, "capacity": quantity}
    rendered = render(values={"nodeCache": sizes, "registry": {"persistence": {"size": quantity}}})
    cache = parse_config(rendered.config()).node_cache
    assert cache is not None
    assert (cache.budget_bytes, cache.reserve_bytes) == (size, size)
    claim = rendered.one("PersistentVolumeClaim", "sovereign-registry")["spec"]
    volume = rendered.of("PersistentVolume")[0]["spec"]
    assert claim["resources"]["requests"]["storage"] == volume["capacity"]["storage"] == quantity


# The last is one that Kubernetes takes and nobody means: somebody forgot the unit.
@pytest.mark.parametrize("quantity", ["1GB", "1 Gi", "-1Gi", "1m", "Gi", "1.2.3Gi", "1Zi", "much", "500"])
def test_a_size_that_is_none_is_refused(quantity: str) -> None:
    assert "budget" in refusal({"nodeCache": {"enabled": True, "budget": quantity}})
    assert "size" in refusal({"registry": {"persistence": {"size": quantity}}})


def test_a_size_that_no_number_of_bytes_holds_is_refused() -> None:
    for quantity in ("9Ei", "1e19", "1e99", "9E"):
        said = refusal({"nodeCache": {"enabled": True, "reserve": quantity}})
        assert f"below 9E, found {quantity}" in said
