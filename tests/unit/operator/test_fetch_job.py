# SPDX-License-Identifier: Apache-2.0
"""The fetch Job: what it is told, what it may touch, where it runs, and when two models meet at one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sovereign_airgap.commands.cache_fetch import cache_fetch_command
from sovereign_operator.api import LABEL_MODEL, LABEL_OWNER, SovereignModel
from sovereign_operator.config import OperatorConfig
from sovereign_operator.desired.fetch_job import MOST_KEPT, Fetch, fetch_job, scrub_job
from sovereign_operator.fetches import fetch_key, label_of, made_by
from sovereign_operator.values import Manifest
from tests.conftest import Golden
from tests.unit.operator.builders import DIGEST, a_caching_config, a_model, an_artifact, with_node_cache
from tests.unit.operator.test_ray_service import Readable

REFERENCE = an_artifact().reference
FETCH = Fetch("models", "gpu-a", REFERENCE)
LONGEST_NODE = ".".join(["n" * 63] * 3 + ["m" * 61])


def a_job(
    fetch: Fetch = FETCH,
    model: SovereignModel | None = None,
    config: OperatorConfig | None = None,
    **options: Any,
) -> Manifest:
    config = config or a_caching_config()
    assert config.node_cache is not None
    return fetch_job(fetch, model or with_node_cache(a_model()), config, config.node_cache, **options)


def pod_of(job: Manifest) -> Manifest:
    pod: Manifest = job["spec"]["template"]["spec"]
    return pod


def arguments_of(job: Manifest) -> list[str]:
    arguments: list[str] = pod_of(job)["containers"][0]["args"]
    return arguments


def test_it_renders_to_its_golden(golden: Golden) -> None:
    tolerations = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    model = with_node_cache(a_model(placement=tolerations))
    text = yaml.dump(a_job(model=model, keep=[DIGEST]), Dumper=Readable, sort_keys=False, width=110)
    golden("fetch-job.yaml", f"# SPDX-License-Identifier: Apache-2.0\n{text}")


def test_it_is_told_what_to_fetch_for_whom_and_what_to_leave() -> None:
    other = "sha256:" + "7" * 64
    assert arguments_of(a_job(keep=[other, DIGEST])) == [
        "cache", "fetch", f"oci://sovereign-registry.sovereign-system.svc:5000/{REFERENCE}",
        "--root", "/cache", "--tenant", "models",
        "--verify", "changed",
        "--budget", "1000000000000", "--reserve", "10000000000",
        "--keep", other,
        "--plain-http",
        "--progress", "json", "--progress-port", "8090", "--result-file", "/dev/termination-log",
    ]  # fmt: skip


def test_the_heads_part_a_check_of_every_byte_and_a_private_authority_are_options() -> None:
    config = a_caching_config(
        registry={"host": "r:5000", "writer": "r:5001", "caConfigMap": "site-ca"}, nodeCache={}
    )
    arguments = " ".join(
        arguments_of(a_job(replace(FETCH, config_only=True), config=config, verify="always"))
    )
    assert "--tenant models --config-only --verify always --reserve 10737418240 --ca " in arguments
    assert "--budget" not in arguments
    assert "--plain-http" not in arguments


@pytest.mark.parametrize("config_only", [False, True])
def test_the_data_plane_understands_what_it_is_told(config_only: bool, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.touch()
    registry = {"host": "r:5000", "writer": "r:5001", "caConfigMap": "site-ca"}
    job = a_job(
        replace(FETCH, config_only=config_only),
        config=a_caching_config(registry=registry),
        keep=["sha256:" + "7" * 64],
        verify="always",
    )
    there = {"/cache": str(tmp_path), "/var/run/sovereign/registry-ca/ca.crt": str(authority)}
    arguments = [there.get(each, each) for each in arguments_of(job)]
    assert arguments[:2] == ["cache", "fetch"]
    understood = cache_fetch_command.make_context("fetch", arguments[2:]).params
    assert str(understood["reference"].digest) == DIGEST
    assert (understood["tenant"], understood["config_only"]) == ("models", config_only)
    assert (understood["budget"], understood["reserve"]) == (10**12, 10**10)
    assert (understood["verify"], understood["progress_port"]) == ("always", 8090)


def test_what_is_kept_has_a_bound_and_an_order() -> None:
    digests = [f"sha256:{number:064x}" for number in range(200)]
    kept = [each for each in arguments_of(a_job(keep=reversed(digests))) if each.startswith("sha256:")]
    assert kept == digests[:MOST_KEPT]


def test_its_name_is_the_lock_and_only_what_it_writes_goes_into_it() -> None:
    others = [
        replace(FETCH, namespace="other"),
        replace(FETCH, node="gpu-b"),
        replace(FETCH, reference=REFERENCE[:-1] + "0"),
        replace(FETCH, config_only=True),
    ]
    assert len({each.name for each in (FETCH, *others)}) == 5
    assert FETCH.name == replace(FETCH, reference=f"models/elsewhere@{DIGEST}").name
    assert FETCH.scrub_name != FETCH.name
    assert FETCH.scrub_name.rpartition("-")[2] == FETCH.name.rpartition("-")[2]
    same = a_job(model=with_node_cache(a_model("another", uid="x")), keep=[DIGEST], verify="always")
    assert same["metadata"]["name"] == a_job()["metadata"]["name"]


def test_it_is_in_the_system_namespace_and_belongs_to_no_model() -> None:
    job = a_job()
    assert job["metadata"]["namespace"] == "sovereign-system"
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert not {LABEL_MODEL, LABEL_OWNER} & metadata["labels"].keys()
        assert metadata["labels"]["sovereign.dev/component"] == "fetch"
        assert fetch_key({"metadata": metadata}) == ("models", label_of(DIGEST))
    assert made_by(job) == "models/mixtral"


def test_the_longest_names_fit_labels_and_the_node_is_found_by_its_name() -> None:
    job = a_job(Fetch("n" * 63, LONGEST_NODE, REFERENCE))
    assert len(LONGEST_NODE) == 253
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())
    terms = pod_of(job)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = terms["nodeSelectorTerms"]
    (wanted,) = term["matchFields"]
    assert (wanted["key"], wanted["operator"], wanted["values"]) == ("metadata.name", "In", [LONGEST_NODE])


def test_its_pod_is_root_and_nothing_else() -> None:
    pod = pod_of(a_job())
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["seccompProfile"]["type"]) == (
        0,
        "RuntimeDefault",
    )
    security = container["securityContext"]
    assert security["runAsUser"] == 0
    assert security["runAsNonRoot"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & pod.keys()
    folders = [volume["hostPath"] for volume in pod["volumes"] if "hostPath" in volume]
    assert folders == [{"path": "/var/lib/sovereign/cache", "type": "DirectoryOrCreate"}]


def test_it_runs_where_the_model_may_and_needs_no_accelerator() -> None:
    placement = {"tolerations": [{"key": "a", "operator": "Exists"}], "nodeSelector": {"zone": "one"}}
    pod = pod_of(a_job(model=with_node_cache(a_model(placement=placement))))
    cordoned = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}
    assert pod["tolerations"] == [{"key": "a", "operator": "Exists"}, cordoned]
    assert "nodeSelector" not in pod
    assert set(pod["containers"][0]["resources"]["limits"]) == {"memory"}


@pytest.mark.parametrize(
    ("interval", "kept"), [(604800, 1209600), (3600, 604800), (0, 604800), (2**31, 2**31 - 1)]
)
def test_the_record_outlives_the_time_to_its_scrub(interval: int, kept: int) -> None:
    config = a_caching_config(nodeCache={"scrubIntervalSeconds": interval})
    spec = a_job(config=config)["spec"]
    assert spec["ttlSecondsAfterFinished"] == kept
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 86400)


def test_a_scrub_is_the_same_but_for_its_name_and_hashes_everything() -> None:
    config = a_caching_config()
    assert config.node_cache is not None
    scrub = scrub_job(FETCH, with_node_cache(a_model()), config, config.node_cache)
    assert scrub["metadata"]["name"] == FETCH.scrub_name
    always = a_job(verify="always")
    assert scrub["spec"] == always["spec"]
    assert scrub["metadata"]["labels"] == always["metadata"]["labels"]


def test_the_same_input_gives_the_same_bytes() -> None:
    one, other = a_job(keep=["sha256:b", "sha256:a"]), a_job(keep=["sha256:a", "sha256:b"])
    assert one == other
    pods = [pod_of(one), pod_of(other)]
    assert all(first is not second for first, second in itertools.pairwise(pods))
