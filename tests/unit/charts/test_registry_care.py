# SPDX-License-Identifier: Apache-2.0
"""The chart's Jobs that look after the registry: off by default, and with no more than each of them needs."""

from __future__ import annotations

import click
import pytest

from sovereign_airgap.commands.registry_prune import registry_prune_command
from sovereign_airgap.commands.registry_verify import registry_verify_command
from tests.unit.charts.rendering import NAMESPACE, Manifest, Rendered, refusal, render

VERIFIES = {"verification": {"enabled": True}}
PRUNES = {"pruning": {"enabled": True, "keepTags": ["models/acme/*:*"]}}
WRITER = f"oci://sovereign-registry-writer.{NAMESPACE}.svc.cluster.local:5001"
OWN = {
    "enabled": False,
    "host": "r.example:5443",
    "writer": "push.example",
    "pushSecret": "push",
    "cidrs": ["10.1.0.0/16"],
    "caConfigMap": "site-ca",
}


def pod(rendered: Rendered, name: str) -> Manifest:
    spec: Manifest = rendered.one("CronJob", name)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def arguments(rendered: Rendered, name: str) -> list[str]:
    [container] = pod(rendered, name)["containers"]
    return list(container["args"])


def understood(command: click.Command, given: list[str]) -> click.Context:
    """Parses them as the command would; fails on an option that it does not know."""
    words = [word.replace("/etc/push/config.json", "/etc/hostname") for word in given]
    words = [word.replace("/etc/registry-ca/ca.crt", "/etc/hostname") for word in words]
    return command.make_context("x", [word.replace("/var/lib/registry", "/") for word in words])


def test_both_are_off_by_default() -> None:
    names = {job["metadata"]["name"] for job in render().of("CronJob")}
    assert names == {"sovereign-registry-gc"}
    policies = {policy["metadata"]["name"] for policy in render().of("NetworkPolicy")}
    assert not {"sovereign-registry-verify", "sovereign-registry-prune"} & policies


def test_the_verification_reads_the_volume_and_talks_to_nobody() -> None:
    rendered = render(values={"registry": VERIFIES})
    given = arguments(rendered, "sovereign-registry-verify")
    assert given[:3] == ["registry", "verify", "/var/lib/registry"]
    assert understood(registry_verify_command, given[2:]).params["repairs"] is False
    spec = pod(rendered, "sovereign-registry-verify")
    [container] = spec["containers"]
    [mount] = container["volumeMounts"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/var/lib/registry", True)
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    policy = rendered.one("NetworkPolicy", "sovereign-registry-verify")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & policy.keys()
    # A ReadWriteOnce volume can be mounted on the registry's node only.
    assert spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]


def test_only_a_repair_may_write_to_the_volume() -> None:
    values = {"registry": {"verification": {"enabled": True, "repair": True, "parallel": 2}}}
    rendered = render(values=values)
    context = understood(registry_verify_command, arguments(rendered, "sovereign-registry-verify")[2:])
    assert (context.params["repairs"], context.params["parallel"]) == (True, 2)
    [container] = pod(rendered, "sovereign-registry-verify")["containers"]
    assert container["volumeMounts"][0]["readOnly"] is False


@pytest.mark.parametrize("registry", [{"persistence": {"enabled": False}}, OWN])
def test_without_a_volume_of_ours_nothing_is_verified(registry: Manifest) -> None:
    rendered = render(values={"registry": {**registry, **VERIFIES}})
    assert not [job for job in rendered.of("CronJob") if job["metadata"]["name"].endswith("verify")]


def test_the_pruning_says_only_what_would_go_until_it_is_told_to_delete() -> None:
    rendered = render(values={"registry": PRUNES})
    given = arguments(rendered, "sovereign-registry-prune")
    assert given[:3] == ["registry", "prune", WRITER]
    context = understood(registry_prune_command, given[2:])
    assert context.params["delete"] is False
    assert context.params["plain_http"] is True
    assert context.params["keep_loaded"] is True
    assert context.params["keep_tags"] == ("models/acme/*:*",)
    assert context.params["repositories"] == ("models/*",)

    told = render(
        values={"registry": {"pruning": {**PRUNES["pruning"], "delete": True, "keep": ["models/a:v1"]}}}
    )
    context = understood(registry_prune_command, arguments(told, "sovereign-registry-prune")[2:])
    assert context.params["delete"] is True
    assert context.params["keep"] == ("models/a:v1",)


def test_the_pruning_has_the_password_and_the_writer_and_nothing_else() -> None:
    rendered = render(values={"registry": PRUNES})
    spec = pod(rendered, "sovereign-registry-prune")
    assert [volume["name"] for volume in spec["volumes"]] == ["push"]
    assert spec["volumes"][0]["secret"]["secretName"] == "sovereign-registry-push"
    egress = rendered.one("NetworkPolicy", "sovereign-registry-prune")["spec"]["egress"]
    assert [rule["ports"][-1]["port"] for rule in egress] == [53, 5001]
    ingress = rendered.one("NetworkPolicy", "sovereign-registry")["spec"]["ingress"]
    [writer] = [rule["from"] for rule in ingress if rule["ports"][0]["port"] == 5001]
    assert {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "sovereign-registry-prune"}}} in writer


def test_an_own_registry_is_pruned_over_tls() -> None:
    rendered = render(values={"registry": {**OWN, **PRUNES}})
    context = understood(registry_prune_command, arguments(rendered, "sovereign-registry-prune")[2:])
    assert str(context.params["target"]) == "oci://push.example"
    assert context.params["plain_http"] is False
    assert context.params["ca"] is not None
    assert {"name": "ca", "configMap": {"name": "site-ca"}} in pod(rendered, "sovereign-registry-prune")[
        "volumes"
    ]


@pytest.mark.parametrize(
    ("registry", "named"),
    [
        ({"pruning": {"enabled": True, "keepLoaded": False}}, "say what is in use"),
        ({"pruning": {"enabled": True, "keep": ["models/A b"]}}, "keep"),
        ({"pruning": {"enabled": True, "dryRun": True}}, "dryRun"),
        ({"verification": {"enabled": True, "parallel": 99}}, "parallel"),
        ({"verification": {"enable": True}}, "enable"),
    ],
)
def test_values_that_mean_nothing_are_refused(registry: Manifest, named: str) -> None:
    assert named in refusal({"registry": registry})
