# SPDX-License-Identifier: Apache-2.0
"""What the operator may do, as rendered. The real API server is asked in tests/controlplane."""

from __future__ import annotations

import pytest

from tests.unit.charts.rendering import NAMESPACE, Manifest, Rendered, render

Right = tuple[str, str, str]  # verb, API group, resource

FORBIDDEN: set[Right] = {
    *((verb, "", "secrets") for verb in ("list", "watch", "update", "delete", "deletecollection", "*")),
    *(
        (verb, "", resource)
        for verb in ("create", "get", "*")
        for resource in ("pods/exec", "pods/log", "pods/attach")
    ),
    *((verb, "", "pods") for verb in ("update", "patch", "deletecollection", "*")),
    *((verb, "", "namespaces") for verb in ("list", "watch", "create", "update", "patch", "delete", "*")),
}
# Only where models are: the peer of a probe, and whether the namespace carries its label.
WITH_MODELS: set[Right] = {("create", "", "pods"), ("delete", "", "pods"), ("get", "", "namespaces")}
READ_NODES: set[Right] = {(verb, "", "nodes") for verb in ("get", "list", "watch")}


def rights(role: Manifest) -> set[Right]:
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def roles_of_the_operator(rendered: Rendered) -> list[tuple[str | None, Manifest]]:
    """(namespace, role) of everything bound to the operator's service account; None is the whole cluster."""
    subject = {"kind": "ServiceAccount", "name": "sovereign-operator", "namespace": NAMESPACE}
    bound: list[tuple[str | None, Manifest]] = []
    for binding in [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]:
        if binding["metadata"]["name"] == "sovereign-resolver":
            continue
        assert binding["subjects"] == [subject]
        namespace = binding["metadata"].get("namespace")
        reference = binding["roleRef"]
        bound.append((namespace, rendered.one(reference["kind"], reference["name"], namespace)))
    assert bound
    return bound


@pytest.mark.parametrize("values", [{}, {"clusterMode": True}, {"rbac": {"namespaceDeletion": False}}])
def test_no_rule_reaches_what_an_operator_of_secrets_and_weights_must_not(values: dict[str, object]) -> None:
    for namespace, role in roles_of_the_operator(render(values=values)):
        held = rights(role)
        assert not held & FORBIDDEN, (namespace, held & FORBIDDEN)
        if role["metadata"]["name"] != "sovereign-operator-models":
            assert not held & WITH_MODELS, (namespace, held & WITH_MODELS)
        assert not {right for right in held if right[1] == "rbac.authorization.k8s.io"}
        assert not {right for right in held if "*" in right}


def test_without_namespace_deletion_nodes_are_the_only_cluster_right() -> None:
    rendered = render(values={"rbac": {"namespaceDeletion": False}})
    cluster = [role for namespace, role in roles_of_the_operator(rendered) if namespace is None]
    assert [rights(role) for role in cluster] == [READ_NODES]


def test_cluster_rights_for_namespace_deletion_create_nothing_and_read_no_secret() -> None:
    rendered = render()
    role = rendered.one("ClusterRole", "sovereign-operator-deletion")
    held = rights(role)
    assert {verb for verb, _, _ in held} <= {"get", "list", "watch", "patch", "delete"}
    assert {(group, resource) for verb, group, resource in held if verb in ("patch", "delete")} == {
        ("sovereign.dev", "sovereignmodels"),
        ("sovereign.dev", "sovereignmodels/status"),
        ("ray.io", "rayservices"),
        ("networking.k8s.io", "networkpolicies"),
    }
    assert not {right for right in held if right[2] == "secrets"}
    # It grants nothing in a watched namespace that the Role there does not.
    assert held <= rights(rendered.one("Role", "sovereign-operator-models", "models"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rbac": {"namespaceDeletion": False}},
        {"admission": {"enabled": False}, "rbac": {"namespaceDeletion": False}},
        {"clusterMode": True},
    ],
    ids=str,
)
def test_whatever_the_operator_may_change_only_its_own_policies_are_changed(values: Manifest) -> None:
    rendered = render(values=values)
    held = set().union(*(rights(role) for _, role in roles_of_the_operator(rendered)))
    assert ("delete", "networking.k8s.io", "networkpolicies") in held
    spec = rendered.one("ValidatingAdmissionPolicy", "sovereign-operator-policies")["spec"]
    assert spec["failurePolicy"] == "Fail"
    assert '"sovereign.dev/owner" in oldObject.metadata.labels' in spec["validations"][0]["expression"]
    binding = rendered.one("ValidatingAdmissionPolicyBinding", "sovereign-operator-policies")["spec"]
    assert binding == {"policyName": "sovereign-operator-policies", "validationActions": ["Deny"]}


def test_each_watched_namespace_has_a_role_and_no_other_has_one() -> None:
    bound = roles_of_the_operator(render(values={"watchNamespaces": ["one", "two", "one"]}))
    assert sorted(namespace for namespace, _ in bound if namespace) == ["one", NAMESPACE, "two"]


def test_cluster_mode_has_no_roles_in_model_namespaces() -> None:
    rendered = render(values={"clusterMode": True})
    bound = roles_of_the_operator(rendered)
    assert [namespace for namespace, _ in bound if namespace] == [NAMESPACE]
    namespaced = render().one("Role", "sovereign-operator-models", "models")
    assert rendered.one("ClusterRole", "sovereign-operator-models")["rules"] == namespaced["rules"]


def test_secrets_of_models_are_read_by_name_only() -> None:
    held = rights(render().one("Role", "sovereign-operator-models", "models"))
    assert {verb for verb, _, resource in held if resource == "secrets"} == {"get"}


def test_secrets_of_the_system_namespace_are_written_and_never_read() -> None:
    held = rights(render().one("Role", "sovereign-operator-system", NAMESPACE))
    assert {verb for verb, _, resource in held if resource == "secrets"} == {"create", "patch"}


def test_policies_of_the_system_namespace_are_watched_and_none_is_read_by_name() -> None:
    held = rights(render().one("Role", "sovereign-operator-system", NAMESPACE))
    verbs = {verb for verb, _, resource in held if resource == "networkpolicies"}
    assert verbs == {"create", "list", "watch", "patch", "delete"}


def test_people_get_models_through_the_roles_they_have() -> None:
    rendered = render()
    view, edit = (rendered.one("ClusterRole", f"sovereign-models-{name}") for name in ("view", "edit"))
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert {verb for verb, _, _ in rights(view)} == {"get", "list", "watch"}
    # The status is the operator's word: nobody writes it by role.
    assert {resource for _, _, resource in rights(edit)} == {"sovereignmodels"}
    assert (
        not render(values={"rbac": {"userRoles": False}})
        .of("ClusterRole")[0]["metadata"]["labels"]
        .get("rbac.authorization.k8s.io/aggregate-to-view")
    )
