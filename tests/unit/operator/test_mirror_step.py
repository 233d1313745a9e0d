# SPDX-License-Identifier: Apache-2.0
"""The mirror Job's life: started, failed, tried again, replaced; what its pod said becomes the reason."""

from __future__ import annotations

import json

import pytest

from sovereign_operator.api import ANNOTATION_ATTEMPT, ANNOTATION_RETRY
from sovereign_operator.job_tries import PERSISTENT, parse_result
from sovereign_operator.values import MirrorProgress, Unreadable
from sovereign_operator.world import CopyToken, Create, Delete, annotation
from tests.unit.operator.builders import COMMIT, a_config
from tests.unit.operator.worlds import Universe, a_body

GATED = json.dumps({"reason": "SourceForbidden", "message": "The repository is gated."})
DOWN = json.dumps({"reason": "SourceUnavailable", "message": "The hub answers 503."})


def a_failed_mirror(message: str = DOWN) -> Universe:
    universe = Universe()
    universe.settle()
    universe.end_job(message)
    universe.settle()
    universe.done.clear()
    return universe


def test_an_absent_artifact_starts_one_job_once() -> None:
    universe = Universe()
    universe.settle()
    universe.settle()
    (created,) = universe.actions_of(Create)
    assert isinstance(created, Create)
    assert annotation(created.manifest, ANNOTATION_ATTEMPT) == "1"
    assert universe.reason("Mirrored") == "MirrorPending"


@pytest.mark.parametrize(("message", "companion"), [(GATED, "Stalled"), (DOWN, "Reconciling")])
def test_the_data_planes_reason_becomes_ours(message: str, companion: str) -> None:
    universe = a_failed_mirror(message)
    expected = json.loads(message)
    assert (
        universe.reason() == universe.reason("Mirrored") == universe.reason(companion) == expected["reason"]
    )
    assert expected["message"] in universe.condition("Mirrored")["message"]


@pytest.mark.parametrize(
    "message",
    [
        "",
        "killed",
        "[]",
        '{"reason": 1, "message": "x"}',
        '{"reason": "no word", "message": "x"}',
        "{" * 9000,
    ],
)
def test_a_mirror_that_left_no_usable_result_failed_with_kubernetes_words(message: str) -> None:
    universe = a_failed_mirror(message)
    assert universe.reason("Mirrored") == "MirrorFailed"
    assert "it gave up" in universe.condition("Mirrored")["message"]


def test_a_failed_job_stays_for_its_backoff_and_is_then_tried_again() -> None:
    universe = a_failed_mirror()
    universe.later(29)
    assert universe.settle().again == pytest.approx(1, abs=1.1)
    assert universe.done == []
    universe.later(2)
    universe.settle()
    first, second = universe.actions_of(Delete, Create)
    assert isinstance(first, Delete)
    assert first.foreground, "the Job stays visible until its pods are gone"
    assert isinstance(second, Create)
    assert annotation(second.manifest, ANNOTATION_ATTEMPT) == "2"


def test_the_backoff_grows_to_half_an_hour_and_survives_a_restart() -> None:
    universe = a_failed_mirror()
    waits = []
    for _ in range(9):
        began = universe.now
        while not universe.actions_of(Create):
            universe.later(max(1, (universe.now - began).total_seconds() // 30))
            universe.step()
        waits.append(round((universe.now - began).total_seconds()))
        universe.done.clear()
        universe.end_job(DOWN)
        universe.step()
    assert waits[:4] == pytest.approx([31, 61, 121, 241], rel=0.05)
    assert waits[-3:] == pytest.approx([1801] * 3, rel=0.05)


def test_the_retry_annotation_tries_again_at_once_and_only_once() -> None:
    universe = a_failed_mirror()
    universe.body["metadata"]["annotations"] = {ANNOTATION_RETRY: "now"}
    universe.settle()
    (created,) = universe.actions_of(Create)
    assert isinstance(created, Create)
    assert annotation(created.manifest, ANNOTATION_ATTEMPT) == "1"
    universe.done.clear()
    universe.end_job(DOWN)
    universe.settle()
    assert universe.actions_of(Create, Delete) == []


def test_a_changed_revision_replaces_the_failed_job_at_once_and_counts_anew() -> None:
    universe = a_failed_mirror()
    next_revision = COMMIT[::-1]
    universe.change(
        source={"huggingFace": {"repo": "mistralai/Mixtral-8x7B-Instruct-v0.1", "revision": next_revision}}
    )
    universe.settle()
    deleted, created = universe.actions_of(Delete, Create)
    assert isinstance(deleted, Delete)
    assert isinstance(created, Create)
    assert next_revision in json.dumps(created.manifest)
    assert annotation(created.manifest, ANNOTATION_ATTEMPT) == "1"


def test_a_job_that_completed_without_a_tag_is_a_failure() -> None:
    universe = Universe()
    universe.settle()
    universe.end_job("", condition="Complete")
    universe.settle()
    assert universe.reason("Mirrored") == "MirrorFailed"


def test_progress_is_reported_and_looked_at_again() -> None:
    universe = Universe()
    universe.settle()
    owner = {"uid": universe.of("Job")[0]["metadata"]["uid"]}
    universe.job_pods = [
        {"kind": "Pod", "metadata": {"name": "p", "ownerReferences": [owner]}, "status": {"phase": "Running"}}
    ]
    universe.progress = MirrorProgress(
        bytes_done=1024**3, bytes_total=4 * 1024**3, files_done=1, files_total=9
    )
    decision = universe.settle()
    assert decision.again == 10
    assert universe.reason("Mirrored") == "Mirroring"
    assert "1.0 GiB of 4.0 GiB, 1 of 9 files" in universe.condition("Mirrored")["message"]
    assert universe.body["status"]["mirror"]["bytesDone"] == 1024**3


def test_a_pod_that_cannot_start_says_why() -> None:
    universe = Universe()
    universe.settle()
    owner = {"uid": universe.of("Job")[0]["metadata"]["uid"]}
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    status = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
    universe.job_pods = [
        {"kind": "Pod", "metadata": {"name": "p", "ownerReferences": [owner]}, "status": status}
    ]
    universe.settle()
    assert "ErrImagePull: no such image" in universe.condition("Mirrored")["message"]


def test_a_token_is_copied_once_there_is_a_job_and_its_absence_stalls() -> None:
    ref = {"name": "hub", "key": "hf"}
    repo = "mistralai/Mixtral-8x7B-Instruct-v0.1"
    source = {"huggingFace": {"repo": repo, "revision": COMMIT, "tokenSecretRef": ref}}
    universe = Universe(body=a_body(source=source), token_missing=True)
    universe.settle()
    assert universe.reason() == "TokenSecretMissing"
    assert not universe.of("Job")
    universe.token_missing = False
    universe.step()
    kinds = [type(action) for action in universe.done if isinstance(action, Create | CopyToken)]
    assert kinds == [Create, CopyToken]


def test_external_sources_are_forbidden_by_default() -> None:
    universe = Universe(config=a_config())
    decision = universe.settle()
    assert universe.reason() == universe.reason("Stalled") == "ExternalSourceForbidden"
    assert not universe.of("Job")
    assert decision.unsettled, "a bundle may be loaded at any time"


def test_an_artifact_that_is_there_is_used_whatever_is_allowed() -> None:
    universe = Universe(config=a_config())
    universe.mirrored()
    universe.settle()
    assert universe.condition("Mirrored")["status"] == "True"


def test_jobs_of_earlier_specs_go_when_the_artifact_is_there() -> None:
    universe = Universe()
    universe.settle()
    job = universe.of("Job")[0]
    stray = {**job, "metadata": {**job["metadata"], "name": "mirror-old"}}
    universe.children["Job", "mirror-old"] = stray
    universe.mirrored()
    universe.settle()
    assert [one["metadata"]["name"] for one in universe.of("Job")] == [job["metadata"]["name"]]


def test_a_damaged_artifact_stalls_and_starts_no_second_job() -> None:
    universe = Universe(found=Unreadable("MalformedManifest", "It is none of ours."))
    universe.settle()
    assert universe.reason() == universe.reason("Stalled") == "MalformedManifest"
    assert not universe.of("Job")


def test_reasons_that_need_a_person_are_those_that_the_data_plane_will_not_retry() -> None:
    assert {"SourceForbidden", "DigestMismatch", "UnsafeFileName", "CertificateUnknown"} <= PERSISTENT
    assert not {"SourceUnavailable", "RegistryUnavailable", "DiskFull", "Interrupted"} & PERSISTENT


def test_a_success_is_no_failure_whatever_kubernetes_thinks() -> None:
    assert parse_result(json.dumps({"reason": "Mirrored", "message": "done"})) is None
