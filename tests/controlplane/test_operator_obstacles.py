# SPDX-License-Identifier: Apache-2.0
"""What keeps a model from being served, on the real API server: a sentence and a stable reason each, no hot
loop, and the second try succeeds without a restart.

There is no kubelet here: the test ends the mirror's pods by writing their status; the Job controller is real.
"""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.cluster.audit import AuditLog
from tests.controlplane.api_server import condition, eventually, reason
from tests.controlplane.operator_site import NEXT_REVISION, REVISION, Site

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]

FORBIDDEN = {
    "reason": "SourceForbidden",
    "message": "org/tiny is gated: accept its licence at https://hub.example/org/tiny.",
}


def fail_mirror(site: Site, result: dict[str, str]) -> str:
    """The Job's pods end badly until the Job controller gives up."""
    job: str = eventually(site.mirror_jobs, "there is a mirror Job")[0]["metadata"]["name"]

    def failed() -> bool:
        site.end_job_pod(job, result, exit_code=1)
        return condition(site.api.get("Job", site.system, job), "Failed").get("status") == "True"

    eventually(failed, "the Job has failed", 90)
    return job


def test_a_failed_mirror_tells_its_reason_and_is_tried_again_at_once_when_asked(site: Site) -> None:
    with site.operator():
        site.create_model()
        job = fail_mirror(site, FORBIDDEN)
        model = site.until("Mirrored", "SourceForbidden")
        assert reason(model, "Ready") == reason(model, "Stalled") == "SourceForbidden"
        assert not condition(model, "Reconciling")
        assert "accept its licence" in condition(model, "Mirrored")["message"]
        mirror = model["status"]["mirror"]
        assert (mirror["attempt"], mirror["job"]) == (1, job)
        assert mirror["nextAttempt"]
        site.await_events("MirrorFailed")
        old = site.mirror_jobs()[0]["metadata"]["uid"]
        site.api.patch(
            "SovereignModel", site.models, "tiny", {"metadata": {"annotations": {"sovereign.dev/retry": "1"}}}
        )
        eventually(lambda: [j for j in site.mirror_jobs() if j["metadata"]["uid"] != old], "a new Job", 25)
        site.mirror(REVISION)
        site.until("Mirrored", "Mirrored")
        assert "mirror" not in site.model()["status"]


def test_a_failed_mirror_is_tried_again_after_half_a_minute_and_counts(site: Site) -> None:
    with site.operator() as operator:
        site.create_model()
        fail_mirror(site, {"reason": "SourceUnavailable", "message": "The hub answers 503."})
        model = site.until("Mirrored", "SourceUnavailable")
        assert condition(model, "Reconciling")["status"] == "True"
        first = site.mirror_jobs()[0]["metadata"]["uid"]
        operator.end()
    with site.operator():  # a restart neither hurries nor forgets
        second = eventually(
            lambda: [j for j in site.mirror_jobs() if j["metadata"]["uid"] != first], "the second try", 60
        )[0]
        assert second["metadata"]["annotations"]["sovereign.dev/attempt"] == "2"
        assert second["metadata"]["creationTimestamp"] >= model["status"]["mirror"]["nextAttempt"]


def test_a_changed_revision_replaces_the_job_of_the_old_one(site: Site) -> None:
    with site.operator():
        site.create_model()
        old = eventually(site.mirror_jobs, "there is a mirror Job")[0]["metadata"]["name"]
        source = {"huggingFace": {"repo": "org/tiny", "revision": NEXT_REVISION}}
        site.api.patch("SovereignModel", site.models, "tiny", {"spec": {"source": source}})
        eventually(
            lambda: site.mirror_jobs() and old not in {j["metadata"]["name"] for j in site.mirror_jobs()},
            "only the new Job is left",
        )


def test_progress_of_a_mirror_is_in_status(site: Site) -> None:
    with (
        site.operator(),
        site.mirror_pod_answers({"bytesDone": 10, "bytesTotal": 40, "filesTotal": 2}) as address,
    ):
        site.create_model()
        job = eventually(site.mirror_jobs, "there is a mirror Job")[0]["metadata"]["name"]
        pod = eventually(lambda: site.job_pods(job), "the Job has a pod")[0]["metadata"]["name"]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        site.api.patch("Pod", site.system, pod, {"status": status}, "status")
        model = site.until("Mirrored", "Mirroring")
        assert model["status"]["mirror"]["bytesDone"] == 10
        assert model["status"]["mirror"]["bytesTotal"] == 40


def test_a_hub_token_is_copied_beside_the_job_and_owned_by_it(site: Site) -> None:
    source = {"repo": "org/tiny", "revision": REVISION, "tokenSecretRef": {"name": "hub", "key": "hf"}}
    with site.operator():
        site.create_model(source={"huggingFace": source})
        site.until("Mirrored", "TokenSecretMissing")
        assert not site.mirror_jobs()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub", "namespace": site.models}}
        site.api.create({**secret, "stringData": {"hf": "s3cret", "other": "x"}})
        job = eventually(site.mirror_jobs, "there is a mirror Job", 60)[0]["metadata"]
        name = f"{job['name']}-token"
        copied = eventually(lambda: site.api.get("Secret", site.system, name), "the copy is there")
    assert list(copied["data"]) == ["token"]
    assert [owner["uid"] for owner in copied["metadata"]["ownerReferences"]] == [job["uid"]]


def test_external_sources_are_forbidden_unless_allowed_but_a_loaded_bundle_is_served(site: Site) -> None:
    site.settings["externalSources"]["allowed"] = False
    with site.operator():
        site.create_model()
        model = site.until("Ready", "ExternalSourceForbidden")
        assert reason(model, "Stalled") == "ExternalSourceForbidden"
        assert not site.mirror_jobs()
        site.registry.publish("models/org/tiny", REVISION)  # as loading a bundle does
        eventually(lambda: site.player().service(), "the RayService is there", 60)


def test_a_tag_where_a_digest_is_wanted_stalls_and_its_correction_is_served(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    wrong = site.manifest()
    pinned = wrong["spec"]["serving"]["image"]
    wrong["spec"]["serving"]["image"] = "registry.example/serving:latest"
    with site.operator():
        site.api.create(wrong)
        model = site.until("Ready", "ImageNotPinned")
        assert reason(model, "Stalled") == "ImageNotPinned"
        assert "latest" in condition(model, "Ready")["message"]
        assert not site.player().service()
        site.api.patch("SovereignModel", site.models, "tiny", {"spec": {"serving": {"image": pinned}}})
        eventually(lambda: site.player().service(), "the RayService is there")


def test_an_artifact_that_the_registry_lacks_is_served_once_it_is_there(site: Site) -> None:
    digest = site.registry.publish("models/org/tiny", REVISION)
    kept = dict(site.registry.content)
    site.registry.content.clear()
    with site.operator():
        site.create_model(source={"artifact": {"reference": f"models/org/tiny@{digest}"}})
        site.until("Ready", "ArtifactNotFound")
        assert not site.mirror_jobs()
        site.registry.content.update(kept)
        eventually(lambda: site.player().service(), "the RayService is there", 60)


def test_a_registry_that_is_down_stops_a_start_but_not_a_serving_model(site: Site) -> None:
    with site.operator():
        site.registry.down = True
        site.create_model()
        model = site.until("Mirrored", "RegistryUnavailable")
        assert condition(model, "Mirrored")["status"] == "Unknown"
        site.registry.down = False
        site.registry.publish("models/org/tiny", REVISION)
        eventually(lambda: site.player().service(), "the RayService is there", 60)
        site.player().start()
        site.until("Ready", "AllChecksPassed")
        site.registry.down = True
        before = site.player().service()["metadata"]["resourceVersion"]
        site.api.patch("SovereignModel", site.models, "tiny", {"metadata": {"labels": {"look": "again"}}})
        eventually(lambda: "asked again" in condition(site.model(), "Mirrored")["message"], "it was noticed")
        assert reason(site.model(), "Ready") == "AllChecksPassed"
        assert site.player().service()["metadata"]["resourceVersion"] == before


def test_an_engine_argument_that_is_no_scalar_is_a_condition_and_not_a_crash(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    broken = site.manifest()
    broken["spec"]["serving"]["engineArgs"] = {"dtype": "a: b"}
    with site.operator() as operator:
        site.api.create(broken)
        model = site.until("Ready", "SpecInvalid")
        assert reason(model, "Stalled") == "SpecInvalid"
        assert "dtype" in condition(model, "Ready")["message"]
        site.settle()
        audit = AuditLog(site.cluster.audit_log)
        audit.mark()
        site.let_pass(2 * site.settings["resyncSeconds"])
        assert len([one for one in audit.by(site.user) if one.writes]) == 0
        assert operator.is_alive()


def test_an_object_that_the_operator_cannot_read_is_a_condition_and_not_a_crash(site: Site) -> None:
    site.registry.publish("models/org/tiny", REVISION)
    with site.operator() as operator, site.without_schema():
        strange = site.manifest("strange")
        strange["spec"]["serving"] = {"image": {"not": "a string"}}
        site.api.create(strange)
        model = site.until("Ready", "SpecInvalid", "strange")
        assert "image" in condition(model, "Ready")["message"]
        site.create_model()
        eventually(lambda: site.player().service(), "others are served")
        assert operator.is_alive()
        site.api.delete("SovereignModel", site.models, "strange")
        eventually(lambda: not site.model("strange"), "it can be deleted")


def test_the_health_endpoint_answers_and_sigterm_ends_the_process_cleanly(site: Site) -> None:
    with site.operator() as operator:
        with urllib.request.urlopen(operator.health, timeout=5) as answer:
            assert json.loads(answer.read())
        assert operator.end() == 0


def test_a_wrong_configuration_is_a_sentence_and_exit_status_2(site: Site) -> None:
    site.settings["registri"] = {}
    with site.operator(wait=False) as operator:
        eventually(lambda: not operator.is_running(), "it ended", 60)
        assert operator.end() == 2
    assert "registri" in operator.log.read_text()
