# SPDX-License-Identifier: Apache-2.0
"""Signatures on the real API server, with the chart's rights: nothing unsigned gets a RayService, a signature
that comes later is noticed, and what serves stays when a new revision is not signed."""

from __future__ import annotations

import pytest

from sovereign_airgap.digest import Digest
from sovereign_airgap.signing.keys import PrivateKey, short
from tests.controlplane.api_server import Manifest, condition, eventually, reason
from tests.controlplane.operator_site import NEXT_REVISION, REVISION, Site
from tests.unit.airgap.signers import ANNA, BERT, CARA, FOREIGN, a_release

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(600)]

REPOSITORY = "models/org/tiny"


def verification(threshold: int = 1) -> Manifest:
    return {"keysSecretRef": {"name": "vendor-keys"}, "threshold": threshold}


def trust(site: Site, *keys: PrivateKey) -> None:
    """The Secret, made or replaced."""
    if site.api.get("Secret", site.models, "vendor-keys"):
        site.api.delete("Secret", site.models, "vendor-keys")
    entries = {f"{short(key.key_id)}.pub": key.public.pem().decode() for key in keys}
    metadata = {"name": "vendor-keys", "namespace": site.models}
    site.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": entries})


def sign(site: Site, digest: str, key: PrivateKey) -> None:
    site.registry.sign(f"{REPOSITORY}@{digest}", a_release(Digest.parse(digest), key), key.key_id)


def test_an_unsigned_model_is_stalled_until_enough_keys_have_signed(site: Site) -> None:
    digest = site.registry.publish(REPOSITORY, REVISION)
    trust(site, ANNA, BERT, CARA)
    sign(site, digest, FOREIGN)
    with site.operator():
        site.create_model(verification=verification(2))
        model = site.until("Verified", "NotSigned")
        assert reason(model, "Ready") == reason(model, "Stalled") == "NotSigned"
        assert condition(model, "Verified")["status"] == "False"
        sign(site, digest, ANNA)
        eventually(
            lambda: (
                short(ANNA.key_id) in condition(site.model(), "Verified")["message"].partition("found")[2]
            ),
            "the first signature was noticed",
        )
        assert reason(site.model(), "Verified") == "NotSigned"
        assert site.policies()
        assert not site.player().service()
        sign(site, digest, CARA)
        model = site.until("Verified", "SignaturesVerified")
        message = condition(model, "Verified")["message"]
        assert short(ANNA.key_id) in message
        assert short(CARA.key_id) in message
        assert short(BERT.key_id) not in message
        eventually(lambda: site.player().service(), "the RayService is there")
        site.player().start()
        site.until("Ready", "AllChecksPassed")


def test_a_secret_that_is_missing_or_wrong_stalls_and_its_correction_is_served(site: Site) -> None:
    sign(site, site.registry.publish(REPOSITORY, REVISION), ANNA)
    with site.operator():
        site.create_model(verification=verification())
        model = site.until("Verified", "KeysUnusable")
        assert reason(model, "Stalled") == "KeysUnusable"
        assert f"{site.models}/vendor-keys" in condition(model, "Verified")["message"]
        metadata = {"name": "vendor-keys", "namespace": site.models}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        site.api.create({**secret, "stringData": {"password": "hunter2"}})
        eventually(
            lambda: "entry password" in condition(site.model(), "Verified")["message"], "the entry is named"
        )
        assert "hunter2" not in str(site.model()["status"])
        assert not site.player().service()
        trust(site, ANNA)
        site.until("Verified", "SignaturesVerified")
        eventually(lambda: site.player().service(), "the RayService is there")


def test_an_unsigned_revision_leaves_the_old_one_serving(site: Site) -> None:
    first = site.registry.publish(REPOSITORY, REVISION)
    sign(site, first, ANNA)
    trust(site, ANNA)
    with site.operator():
        site.serve(verification=verification())
        before = site.player().service()["metadata"]["generation"]
        second = site.registry.publish(REPOSITORY, NEXT_REVISION)
        sign(site, second, FOREIGN)
        source = {"huggingFace": {"repo": "org/tiny", "revision": NEXT_REVISION}}
        site.api.patch("SovereignModel", site.models, "tiny", {"spec": {"source": source}})
        model = site.until("Verified", "NotSigned")
        assert reason(model, "Ready") == reason(model, "Stalled") == "NotSigned"
        assert condition(model, "Serving")["status"] == "True"
        assert model["status"]["servingArtifact"] == first
        site.let_pass(2 * site.settings["resyncSeconds"])
        assert site.player().service()["metadata"]["generation"] == before
        sign(site, second, ANNA)
        site.until("Ready", "Upgrading")


def test_a_key_that_is_taken_away_is_noticed_and_stops_nothing(site: Site) -> None:
    sign(site, site.registry.publish(REPOSITORY, REVISION), ANNA)
    trust(site, ANNA)
    with site.operator():
        site.serve(verification=verification())
        before = site.player().service()["metadata"]["resourceVersion"]
        trust(site, BERT)
        model = site.until("Verified", "NotSigned")
        assert condition(model, "Ready")["status"] == "False"
        assert condition(model, "Serving")["status"] == "True"
        assert site.player().service()["metadata"]["resourceVersion"] == before
        trust(site, ANNA)
        site.until("Ready", "AllChecksPassed")
        assert site.player().service()["metadata"]["resourceVersion"] == before


def test_a_bundles_artifact_needs_the_signature_that_came_with_it(site: Site) -> None:
    digest = site.registry.publish(REPOSITORY, REVISION)
    trust(site, ANNA)
    with site.operator():
        reference = f"{REPOSITORY}@{digest}"
        site.create_model(source={"artifact": {"reference": reference}}, verification=verification())
        site.until("Verified", "NotSigned")
        other = site.registry.publish(REPOSITORY, NEXT_REVISION)
        site.registry.sign(reference, a_release(Digest.parse(other), ANNA), ANNA.key_id)
        model = site.until("Verified", "SignatureInvalid")
        assert other in condition(model, "Verified")["message"]
        assert not site.player().service()
        sign(site, digest, ANNA)
        site.until("Verified", "SignaturesVerified")
        eventually(lambda: site.player().service(), "the RayService is there")
