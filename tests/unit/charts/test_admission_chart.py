# SPDX-License-Identifier: Apache-2.0
"""The admission policies as rendered. What they decide is asked of the API server in tests/controlplane."""

from __future__ import annotations

import json
import re

import pytest

from sovereign_operator.config import parse_config
from tests.unit.charts.rendering import NAMESPACE, Manifest, Rendered, render

OURS = "sovereign-sealed-"
# An authorizer's answer costs 350000 of the 1000000 that the API server grants an expression.
MOST_CHECKS = 2


def policies(rendered: Rendered) -> list[Manifest]:
    return [m for m in rendered.of("ValidatingAdmissionPolicy") if m["metadata"]["name"].startswith(OURS)]


def test_every_policy_is_bound_and_fails_closed() -> None:
    rendered = render()
    bindings = {m["spec"]["policyName"]: m["spec"] for m in rendered.of("ValidatingAdmissionPolicyBinding")}
    assert policies(rendered)
    for policy in policies(rendered):
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert bindings[policy["metadata"]["name"]]["validationActions"] == ["Deny", "Audit"]


def test_policies_hold_in_sealed_namespaces_and_never_in_kube_system() -> None:
    for binding in render().of("ValidatingAdmissionPolicyBinding"):
        name = binding["metadata"]["name"]
        if not name.startswith(OURS) or name == "sovereign-sealed-label":
            continue
        selector = binding["spec"]["matchResources"]["namespaceSelector"]
        assert selector["matchLabels"] == {"sovereign.dev/sealed": "true"}
        [excluded] = selector["matchExpressions"]
        assert (excluded["operator"], excluded["values"]) == ("NotIn", ["kube-system"])


def test_every_refusal_says_what_was_expected_and_is_a_403() -> None:
    for policy in policies(render(values={"admission": {"registries": ["registry.example"]}})):
        for rule in policy["spec"]["validations"]:
            said = rule.get("message", "") + rule.get("messageExpression", "")
            assert "expected" in said, policy["metadata"]["name"]
            assert rule["reason"] == "Forbidden"
            assert "\n" not in rule.get("message", "")


def test_no_expression_asks_the_authorizer_too_often() -> None:
    for policy in policies(render()):
        for rule in policy["spec"]["validations"]:
            assert rule["expression"].count("authorizer.") <= MOST_CHECKS


def test_kuberay_is_looked_for_where_it_is_said_to_run() -> None:
    def creators(values: Manifest) -> set[str]:
        [policy] = [m for m in policies(render(values=values)) if m["metadata"]["name"] == f"{OURS}set"]
        expressions = " ".join(rule["expression"] for rule in policy["spec"]["validations"])
        found = re.search(r"username in (\[.*?\])", expressions)
        assert found
        return set(json.loads(found[1]))

    operator = f"system:serviceaccount:{NAMESPACE}:sovereign-operator"
    assert creators({}) == {operator, "system:serviceaccount:kuberay-system:kuberay-operator"}
    assert creators({"kuberay": {"namespace": "ray"}}) == {
        operator,
        "system:serviceaccount:ray:kuberay-operator",
    }
    own = {"admission": {"podCreators": ["system:serviceaccount:ray:mine"]}}
    assert creators(own) == {operator, "system:serviceaccount:ray:mine"}


@pytest.mark.parametrize("registry", ["registry.example", "registry.example/"])
def test_a_registry_ends_where_its_name_ends(registry: str) -> None:
    [pods] = [
        m
        for m in policies(render(values={"admission": {"registries": [registry]}}))
        if m["metadata"]["name"] == f"{OURS}pods"
    ]
    assert '["registry.example/"]' in pods["spec"]["validations"][-1]["expression"]


def test_a_digest_is_asked_for_whatever_the_registries() -> None:
    [pods] = [m for m in policies(render()) if m["metadata"]["name"] == f"{OURS}pods"]
    assert "@sha256:" in pods["spec"]["validations"][-1]["expression"]
    # Trying things out with tags is for namespaces that nobody sealed.
    loose = {"images": {"requireDigest": False}}
    [same] = [m for m in policies(render(values=loose)) if m["metadata"]["name"] == f"{OURS}pods"]
    assert same["spec"] == pods["spec"]


def test_the_glass_is_broken_by_a_verb_that_no_other_role_has() -> None:
    rendered = render()
    [rule] = rendered.one("ClusterRole", "sovereign-break-glass")["rules"]
    assert rule == {"apiGroups": ["sovereign.dev"], "resources": ["sovereignmodels"], "verbs": ["breakglass"]}
    for role in [*rendered.of("ClusterRole"), *rendered.of("Role")]:
        if role["metadata"]["name"] != "sovereign-break-glass":
            assert "breakglass" not in json.dumps(role["rules"])
            assert "*" not in {verb for each in role["rules"] for verb in each["verbs"]}
    assert not [b for b in rendered.of("ClusterRoleBinding") if "break" in b["roleRef"]["name"]]


def test_the_operator_knows_whether_namespaces_must_be_labelled() -> None:
    assert parse_config(render().config()).admission
    off = render(values={"admission": {"enabled": False}})
    assert not parse_config(off.config()).admission
    assert policies(off) == []
    assert not [m for m in off.manifests if m["metadata"]["name"] == "sovereign-break-glass"]
