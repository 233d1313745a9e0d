# SPDX-License-Identifier: Apache-2.0
"""The node cache as the chart renders it: off by default, a volume for each tenant, who may reach whom."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.unit.charts.rendering import NAMESPACE, Manifest, Rendered, refusal, render

ON: Manifest = {"nodeCache": {"enabled": True}}
OWN_REGISTRY = {
    "enabled": False,
    "host": "registry.example:5443",
    "writer": "push.registry.example",
    "pushSecret": "push",
    "cidrs": ["192.0.2.0/24"],
}
FETCH = {"podSelector": {"matchLabels": {"sovereign.dev/component": "fetch"}}}


def on(**values: object) -> Rendered:
    return render(values={"nodeCache": {"enabled": True, **values}})


def told(rendered: Rendered) -> Manifest | None:
    """What the operator's configuration says of the cache."""
    found: Manifest | None = yaml.safe_load(rendered.config()).get("nodeCache")
    return found


def policy(rendered: Rendered, name: str) -> Manifest:
    spec: Manifest = rendered.one("NetworkPolicy", name)["spec"]
    return spec


def test_it_is_off_by_default_and_leaves_nothing() -> None:
    rendered = render()
    assert told(rendered) is None
    assert rendered.of("PersistentVolume") == []
    names = {m["metadata"]["name"] for m in rendered.manifests}
    assert not {name for name in names if "fetch" in name or name.startswith("sovereign-cache")}
    for found in rendered.of("NetworkPolicy"):
        assert "fetch" not in json.dumps(found)


def test_each_namespace_with_models_has_a_volume_and_a_claim_that_name_each_other() -> None:
    rendered = render(values={**ON, "watchNamespaces": ["two", "one", "two"]})
    volumes = rendered.of("PersistentVolume")
    assert [v["metadata"]["name"] for v in volumes] == ["sovereign-cache-one", "sovereign-cache-two"]
    for volume in volumes:
        claimed = volume["spec"]["claimRef"]
        claim = rendered.one("PersistentVolumeClaim", "sovereign-cache", claimed["namespace"])
        assert (claimed["kind"], claimed["name"]) == ("PersistentVolumeClaim", "sovereign-cache")
        assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
        # "" and not left out: the cluster's default class would make a volume of its own.
        assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
        assert claim["spec"]["accessModes"] == volume["spec"]["accessModes"] == ["ReadOnlyMany"]
        assert claim["spec"]["resources"]["requests"] == volume["spec"]["capacity"]
        assert volume["spec"]["hostPath"] == {
            "path": f"/var/lib/sovereign/cache/{claimed['namespace']}",
            "type": "DirectoryOrCreate",
        }
        # With any other, Kubernetes itself would try to empty the folder of some node.
        assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def test_no_volume_is_for_two_tenants_or_for_the_whole_folder() -> None:
    rendered = render(values={**ON, "watchNamespaces": ["one", "two"]})
    paths = [v["spec"]["hostPath"]["path"] for v in rendered.of("PersistentVolume")]
    assert len(set(paths)) == 2
    written = told(rendered)
    assert written is not None
    assert all(path.rpartition("/")[0] == written["path"] for path in paths)


def test_in_cluster_mode_the_namespaces_are_named() -> None:
    assert "namespaces" in refusal({**ON, "clusterMode": True})
    rendered = render(values={"clusterMode": True, "nodeCache": {"enabled": True, "namespaces": ["a", "b"]}})
    assert [
        c["metadata"]["namespace"] for c in rendered.of("PersistentVolumeClaim") if "volumeName" in c["spec"]
    ] == [
        "a",
        "b",
    ]
    # Off, nothing has to be named.
    assert told(render(values={"clusterMode": True})) is None


def test_the_operator_is_told_sizes_in_bytes() -> None:
    assert told(render(values=ON)) == {
        "claim": "sovereign-cache",
        "path": "/var/lib/sovereign/cache",
        "reserveBytes": 10 * 1024**3,
        "scrubIntervalSeconds": 604800,
    }
    found = told(on(path="/mnt/nvme", budget="1.5Ti", reserve="20G", scrubIntervalSeconds=0))
    assert found == {
        "claim": "sovereign-cache",
        "path": "/mnt/nvme",
        "budgetBytes": 3 * 1024**4 // 2,
        "reserveBytes": 20 * 10**9,
        "scrubIntervalSeconds": 0,
    }


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [
        ("0Gi", 0),
        ("7Mi", 7 * 2**20),
        ("123Pi", 123 * 2**50),
        ("5M", 5 * 10**6),
        ("2P", 2 * 10**15),
        ("900T", 9 * 10**14),
    ],
)
def test_every_unit_of_a_size_is_understood(given: str, bytes_: int) -> None:
    found = told(on(reserve=given))
    assert found is not None
    assert found["reserveBytes"] == bytes_


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"path": "var/lib/cache"}, "path"),
        ({"path": "/"}, "path"),
        ({"path": "/var/lib/cache/"}, "path"),
        ({"path": "/var/../etc"}, "path"),
        ({"path": "/var/lib/my cache"}, "path"),
        ({"budget": "plenty"}, "budget"),
        ({"budget": "1000000"}, "budget"),
        ({"reserve": ""}, "reserve"),
        ({"path": "/var"}, "path"),
        ({"scrubIntervalSeconds": -1}, "scrubIntervalSeconds"),
        ({"claim": "mine"}, "claim"),
    ],
)
def test_values_that_nobody_could_mean_are_refused(values: Manifest, named: str) -> None:
    assert named in refusal({"nodeCache": {"enabled": True, **values}})


@pytest.mark.parametrize("path", ["/srv/cache", "/opt/.local/state/cache", "/mnt/nvme0n1/a_b..c"])
def test_a_path_may_be_any_folder(path: str) -> None:
    found = told(on(path=path))
    assert found is not None
    assert found["path"] == path


def test_a_fetch_pod_reaches_the_readers_and_names_and_nothing_else() -> None:
    spec = policy(render(values=ON), "sovereign-fetch")
    assert spec["podSelector"] == FETCH["podSelector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, registry = spec["egress"]
    assert {p["port"] for p in dns["ports"]} == {53}
    assert dns["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert registry == {
        "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-registry"}}}],
        "ports": [{"protocol": "TCP", "port": 5000}],
    }
    assert spec["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-operator"}}}],
            "ports": [{"protocol": "TCP", "port": 8090}],
        }
    ]


def test_the_other_end_of_each_way_is_open_too() -> None:
    rendered = render(values=ON)
    [readers] = [
        r for r in policy(rendered, "sovereign-registry")["ingress"] if r["ports"][0]["port"] == 5000
    ]
    [writers] = [
        r for r in policy(rendered, "sovereign-registry")["ingress"] if r["ports"][0]["port"] == 5001
    ]
    assert FETCH in readers["from"]
    assert FETCH not in writers["from"]
    [asked] = [r for r in policy(rendered, "sovereign-operator")["egress"] if r["ports"][0]["port"] == 8090]
    assert FETCH in asked["to"]


def test_fetch_pods_follow_the_address_of_an_own_registry() -> None:
    rendered = render(values={**ON, "registry": OWN_REGISTRY})
    assert policy(rendered, "sovereign-fetch")["egress"][1] == {
        "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        "ports": [{"protocol": "TCP", "port": 5443}],
    }


def test_the_operator_needs_no_right_that_it_lacks_without_it() -> None:
    def roles(rendered: Rendered) -> list[object]:
        return [m.get("rules") or m.get("roleRef") for m in rendered.manifests if "Role" in m["kind"]]

    assert roles(render(values=ON)) == roles(render())


def test_a_claim_of_that_name_is_guarded_before_the_cache_is_on() -> None:
    """What somebody put under it before would be served afterwards."""
    name = "sovereign-sealed-cache"
    for values in ({}, ON):
        assert render(values=values).one("ValidatingAdmissionPolicy", name)
    bound = render().one("ValidatingAdmissionPolicyBinding", name)["spec"]["matchResources"]
    assert bound["namespaceSelector"]["matchLabels"] == {"sovereign.dev/sealed": "true"}


def test_what_pod_security_no_longer_holds_in_the_releases_namespace_is_held_by_policies() -> None:
    rendered = render(values=ON)
    for name in ("sovereign-fetch-pods", "sovereign-fetch-jobs"):
        found = rendered.one("ValidatingAdmissionPolicy", name)["spec"]
        assert found["failurePolicy"] == "Fail"
        bound = rendered.one("ValidatingAdmissionPolicyBinding", name)["spec"]
        assert bound["policyName"] == name
        assert bound["validationActions"] == ["Deny", "Audit"]
        selector = bound["matchResources"]["namespaceSelector"]
        assert selector == {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    without = render(values={**ON, "admission": {"enabled": False}})
    assert not [
        m for m in without.manifests if m["kind"].startswith("ValidatingAdmission") and "sealed" in str(m)
    ]
