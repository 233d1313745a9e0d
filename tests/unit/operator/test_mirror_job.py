# SPDX-License-Identifier: Apache-2.0
"""The mirror Job: what it is told, what it may touch, and when it is another Job."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_operator.api import (
    LABEL_COMPONENT,
    LABEL_MIRROR_FOR,
    LABEL_MODEL,
    LABEL_OWNER,
    LABEL_OWNER_NAMESPACE,
)
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.mirror_job import mirror_job, token_secret_name
from tests.unit.operator.builders import COMMIT, DIGEST, a_config, a_model

REPO = "mistralai/Mixtral-8x7B-Instruct-v0.1"


def a_source(**changes: Any) -> dict[str, Any]:
    return {"huggingFace": {"repo": REPO, "revision": COMMIT} | changes}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def arguments_of(config: OperatorConfig, **source: Any) -> list[str]:
    job = mirror_job(a_model(source=a_source(**source)), config)
    arguments: list[str] = pod_of(job)["containers"][0]["args"]
    return arguments


def test_it_is_told_what_to_mirror_and_where_to_report() -> None:
    assert arguments_of(a_config()) == [
        "mirror",
        f"hf://{REPO}@{COMMIT}",
        "oci://sovereign-registry-writer.sovereign-system.svc:5001/models/mistralai/mixtral-8x7b-instruct-v0.1",
        "--endpoint", "https://huggingface.co",
        "--plain-http",
        "--docker-config", "/var/run/sovereign/push/config.json",
        "--progress", "json",
        "--progress-port", "8090",
        "--result-file", "/dev/termination-log",
    ]  # fmt: skip


def test_a_selection_and_private_authorities_become_options() -> None:
    config = a_config(
        registry={"host": "r:5000", "writer": "r:5001", "caConfigMap": "site-ca"},
        externalSources={"allowed": True, "endpoint": "https://hub.site", "caConfigMap": "hub-ca"},
    )
    arguments = " ".join(arguments_of(config, include=["*.json", "model-*"], exclude=["x*"]))
    assert "--include *.json --include model-* --exclude x* --endpoint https://hub.site" in arguments
    assert "--ca /var/run/sovereign/registry-ca/ca.crt --hub-ca /var/run/sovereign/hub-ca/ca.crt" in arguments
    assert "--plain-http" not in arguments


def test_it_lives_in_the_system_namespace_and_says_whose_it_is() -> None:
    job = mirror_job(a_model("mixtral"), a_config())
    assert job["metadata"]["namespace"] == "sovereign-system"
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        labels = metadata["labels"]
        assert (labels[LABEL_OWNER], labels[LABEL_OWNER_NAMESPACE]) == ("mixtral", "models")
        assert labels[LABEL_COMPONENT] == "mirror"
        assert len(labels[LABEL_MIRROR_FOR]) <= 63
        assert LABEL_MODEL not in labels  # it has to reach the hub, and the sealed set must not


def test_the_longest_name_still_fits_its_labels() -> None:
    assert len(mirror_job(a_model("m" * 40), a_config())["metadata"]["labels"][LABEL_MIRROR_FOR]) <= 63


def test_it_runs_restricted_and_without_an_api_token() -> None:
    pod = pod_of(mirror_job(a_model(), a_config()))
    container = pod["containers"][0]["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert container["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_it_ends_by_itself() -> None:
    spec = mirror_job(a_model(), a_config())["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] == 86400
    assert spec["ttlSecondsAfterFinished"] > 1800  # the longest backoff: it must still be there to be read


def test_its_credentials_are_files_of_its_own() -> None:
    job = mirror_job(a_model(source=a_source(tokenSecretRef={"name": "hub", "key": "t"})), a_config())
    pod = pod_of(job)
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"sovereign-registry-push", token_secret_name(job["metadata"]["name"])}
    assert "--token-file" in pod["containers"][0]["args"]
    assert all("valueFrom" not in each for each in pod["containers"][0]["env"])


def test_without_a_token_it_asks_anonymously() -> None:
    pod = pod_of(mirror_job(a_model(), a_config()))
    assert "--token-file" not in pod["containers"][0]["args"]
    assert "token" not in {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    "other",
    [
        a_model(source=a_source(revision="a" * 40)),
        a_model(source=a_source(include=["*.json"])),
        a_model("another"),
        a_model(uid="recreated"),
    ],
    ids=["revision", "selection", "name", "uid"],
)
def test_other_work_is_another_job(other: Any) -> None:
    assert (
        mirror_job(other, a_config())["metadata"]["name"]
        != mirror_job(a_model(), a_config())["metadata"]["name"]
    )


def test_the_same_work_is_the_same_job_whatever_else_changed() -> None:
    other = a_model(serving={"replicas": 3}, suspend=True)
    assert mirror_job(other, a_config()) == mirror_job(a_model(), a_config())


def test_an_artifact_is_nothing_to_mirror() -> None:
    model = a_model(source={"artifact": {"reference": f"models/a/b@{DIGEST}"}})
    with pytest.raises(ValueError, match="huggingFace source"):
        mirror_job(model, a_config())
