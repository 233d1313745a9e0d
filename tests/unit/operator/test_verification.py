# SPDX-License-Identifier: Apache-2.0
"""Signatures decide what may be served: read from the registry and the Secret, judged by values alone."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sovereign_airgap.digest import Digest
from sovereign_airgap.manifest import MANIFEST_TYPE, Descriptor, fallback_tag
from sovereign_airgap.signing import referrer, statement
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES, Envelope
from sovereign_airgap.signing.keys import PrivateKey, short
from sovereign_airgap.signing.statement import PAYLOAD_TYPE
from sovereign_operator.cluster import Refused
from sovereign_operator.config import RegistryConfig
from sovereign_operator.registry import RegistryReader
from sovereign_operator.rollout import Memo
from sovereign_operator.values import Artifact, Envelopes, Evidence, Unreadable
from sovereign_operator.verification import MAX_KEYS
from sovereign_operator.workqueue import TryLater
from sovereign_operator.world import Apply
from tests.controlplane.registry_double import RegistryDouble
from tests.unit.airgap.signers import ANNA, BERT, CARA, FOREIGN, WHEN, a_release
from tests.unit.operator.builders import COMMIT, an_artifact
from tests.unit.operator.test_plan import NEXT_DIGEST, a_next_artifact, a_next_source, kinds
from tests.unit.operator.test_reconcile import Bench
from tests.unit.operator.worlds import Universe, a_body

ARTIFACT = an_artifact()
SUBJECT = Digest.parse(ARTIFACT.digest)
REPOSITORY = "models/org/tiny"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
RSA_PEM = RSA.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def verification(threshold: int = 1) -> dict[str, Any]:
    return {"keysSecretRef": {"name": "vendor-keys"}, "threshold": threshold}


def some_keys(*keys: PrivateKey) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"key-{number}.pub", key.public.pem()) for number, key in enumerate(keys))


def some_evidence(
    *envelopes: bytes, keys: tuple[PrivateKey, ...] = (ANNA,), reference: str = ARTIFACT.reference
) -> Evidence:
    return Evidence(some_keys(*keys), signatures=Envelopes(reference, envelopes))


def a_universe(evidence: Evidence | None, threshold: int = 1) -> Universe:
    universe = Universe(body=a_body(verification=verification(threshold)), evidence=evidence)
    universe.mirrored()
    universe.settle()
    return universe


def a_served_universe() -> Universe:
    universe = a_universe(some_evidence(a_release(SUBJECT, ANNA)))
    universe.start_cluster()
    universe.settle()
    assert universe.reason() == "AllChecksPassed", universe.body["status"]
    universe.done.clear()
    return universe


# -- deciding ---------------------------------------------------------------------------------------------


def test_a_signed_artifact_is_served_and_the_condition_names_the_keys() -> None:
    universe = a_universe(
        some_evidence(a_release(SUBJECT, ANNA), a_release(SUBJECT, CARA), keys=(ANNA, BERT, CARA)), 2
    )
    verified = universe.condition("Verified")
    assert (verified["status"], verified["reason"]) == ("True", "SignaturesVerified")
    assert short(ANNA.key_id) in verified["message"]
    assert short(CARA.key_id) in verified["message"]
    assert short(BERT.key_id) not in verified["message"]
    assert "models/vendor-keys" in verified["message"]
    assert universe.of("RayService")


WRONG = Envelope.signed(
    PAYLOAD_TYPE, statement.bundle("site", 1, None, SUBJECT, WHEN).encode(), ANNA
).encode()


@pytest.mark.parametrize(
    ("evidence", "threshold", "reason", "says"),
    [
        (some_evidence(), 1, "NotSigned", "found 0"),
        (some_evidence(a_release(SUBJECT, FOREIGN)), 1, "NotSigned", "by other keys"),
        (some_evidence(a_release(SUBJECT, ANNA), keys=(ANNA, BERT)), 2, "NotSigned", "found 1"),
        (
            some_evidence(a_release(SUBJECT, ANNA), a_release(SUBJECT, ANNA), keys=(ANNA, BERT)),
            2,
            "NotSigned",
            "found 1",
        ),
        (some_evidence(a_release(Digest.of(b"other"), ANNA)), 1, "SignatureInvalid", "not over"),
        (some_evidence(WRONG), 1, "SignatureInvalid", "bundle/v1"),
        (some_evidence(b"junk"), 1, "SignatureInvalid", "DSSE envelope"),
        (
            Evidence(some_keys(ANNA), signatures=Envelopes(ARTIFACT.reference, (), ("The blob went bad.",))),
            1,
            "SignatureInvalid",
            "went bad",
        ),
        (None, 1, "KeysUnusable", "models/vendor-keys"),
        (Evidence(no_keys="found none"), 1, "KeysUnusable", "found none"),
        (some_evidence(a_release(SUBJECT, ANNA)), 2, "KeysUnusable", "different keys"),
        (some_evidence(a_release(SUBJECT, ANNA), keys=(ANNA, ANNA)), 2, "KeysUnusable", "found 1"),
        (some_evidence(a_release(SUBJECT, ANNA), keys=(ANNA,) * (MAX_KEYS + 1)), 1, "KeysUnusable", "most"),
        (Evidence((("a.pub", RSA_PEM),)), 1, "KeysUnusable", "entry a.pub .* an RSA key"),
        (Evidence((("a.key", ANNA.pem()),)), 1, "KeysUnusable", "a private key"),
        (
            Evidence((*some_keys(ANNA), ("password", b"hunter2")), signatures=Envelopes(ARTIFACT.reference)),
            1,
            "KeysUnusable",
            "entry password",
        ),
    ],
)
def test_what_is_not_vouched_for_stalls_before_any_pod(
    evidence: Evidence | None, threshold: int, reason: str, says: str
) -> None:
    universe = a_universe(evidence, threshold)
    assert universe.reason() == universe.reason("Stalled") == universe.reason("Verified") == reason
    assert universe.condition("Verified")["status"] == "False"
    assert re.search(says, universe.condition("Verified")["message"])
    assert "hunter2" not in str(universe.body["status"])
    assert universe.of("NetworkPolicy")
    assert not universe.of("RayService")
    assert universe.decision().unsettled, "a signature may come at any time"


def test_nothing_that_was_read_from_a_secret_is_printed() -> None:
    assert "hunter2" not in repr(Evidence((("password", b"hunter2"),)))


def test_a_later_signature_makes_it_go_on() -> None:
    universe = a_universe(some_evidence())
    assert not universe.of("RayService")
    universe.evidence = some_evidence(a_release(SUBJECT, ANNA))
    universe.settle()
    assert universe.reason("Verified") == "SignaturesVerified"
    assert universe.of("RayService")


def test_a_signed_model_is_looked_at_again_by_itself() -> None:
    universe = a_served_universe()
    assert universe.decision().again is not None
    unsigned = Universe(body=a_body())
    unsigned.mirrored()
    unsigned.settle()
    assert unsigned.decision().again is None


@pytest.mark.parametrize(
    "evidence",
    [
        some_evidence(a_release(SUBJECT, ANNA), keys=(BERT,)),
        some_evidence(),
        Evidence(no_keys="found none"),
        Evidence(some_keys(ANNA), signatures=Unreadable("RegistryUnavailable", "no answer")),
    ],
)
def test_what_is_served_stays_untouched_when_it_is_no_longer_vouched_for(evidence: Evidence) -> None:
    universe = a_served_universe()
    universe.evidence = evidence
    universe.settle()
    assert universe.done == []
    assert universe.condition("Verified")["status"] in ("False", "Unknown")
    assert universe.condition("Ready")["status"] == "False"
    assert universe.condition("Serving")["status"] == "True"


def test_an_unsigned_revision_leaves_the_old_one_serving_and_a_signature_lets_it_in() -> None:
    universe = a_served_universe()
    universe.change(source=a_next_source())
    following = a_next_artifact()
    assert isinstance(following, Artifact)
    universe.mirrored(following)
    universe.evidence = some_evidence(reference=following.reference)
    universe.settle()
    assert universe.reason() == universe.reason("Stalled") == "NotSigned"
    assert universe.condition("Serving")["status"] == "True"
    assert universe.body["status"]["servingArtifact"] == ARTIFACT.digest
    assert universe.done == []
    universe.evidence = some_evidence(
        a_release(Digest.parse(NEXT_DIGEST), ANNA), reference=following.reference
    )
    universe.settle()
    assert universe.reason() == "Upgrading"
    assert "RayService" in kinds(universe.done)


def test_signatures_of_the_artifact_before_do_not_let_the_next_one_in() -> None:
    universe = a_served_universe()
    universe.change(source=a_next_source())
    universe.mirrored(a_next_artifact())  # type: ignore[arg-type]
    universe.settle()  # the evidence is still about the old one
    assert universe.condition("Verified")["status"] == "Unknown"
    assert universe.done == []
    universe.evidence = some_evidence(a_release(SUBJECT, ANNA), reference=universe.found.reference)  # type: ignore[union-attr]
    universe.settle()
    assert universe.reason() == "SignatureInvalid"
    assert universe.done == []


def test_a_memo_that_names_another_artifact_is_not_rendered() -> None:
    """Whoever may change annotations of a RayService must not choose what is served."""
    universe = a_served_universe()
    service = universe.service()
    memo = Memo.of(service)
    assert memo is not None
    other = replace(memo.artifact, reference="models/evil@sha256:" + "e" * 64)
    service["metadata"]["annotations"]["sovereign.dev/placement"] = replace(memo, artifact=other).to_text()
    universe.step()
    applied = [action.manifest for action in universe.done if isinstance(action, Apply)]
    assert applied
    assert "models/evil" not in str(applied)


def test_suspending_stops_what_serves_and_renders_nothing_unverified() -> None:
    universe = a_served_universe()
    universe.change(source=a_next_source(), suspend=True)
    universe.mirrored(a_next_artifact())  # type: ignore[arg-type]
    universe.evidence = some_evidence(reference=a_next_artifact().reference)  # type: ignore[attr-defined]
    universe.step()
    assert universe.service()["spec"]["suspend"] is True
    assert NEXT_DIGEST not in str(universe.service())
    universe.stop_cluster()
    universe.settle()
    universe.change(suspend=False)
    universe.settle()
    assert universe.service()["spec"]["suspend"] is True
    assert universe.reason() == "NotSigned"


def test_the_keys_are_judged_before_the_artifact_is_there() -> None:
    universe = Universe(body=a_body(verification=verification()), evidence=Evidence((("a.pub", RSA_PEM),)))
    universe.step()
    universe.step()
    assert universe.reason("Verified") == "KeysUnusable"
    assert universe.reason() == universe.reason("Mirrored")
    decision = universe.decision()
    assert (decision.again, decision.unsettled) == (10.0, ""), "the mirror's progress is still asked for"
    universe.evidence = Evidence(some_keys(ANNA))
    universe.step()
    assert (universe.condition("Verified")["status"], universe.reason("Verified")) == ("Unknown", "Waiting")


# -- reading the registry ---------------------------------------------------------------------------------


@dataclass
class Shelves:
    double: RegistryDouble
    reader: RegistryReader
    reference: str

    @property
    def subject(self) -> Digest:
        return Digest.parse(self.reference.partition("@")[2])

    def sign(self, key: PrivateKey) -> bytes:
        envelope = a_release(self.subject, key)
        self.double.sign(self.reference, envelope, key.key_id)
        return envelope

    async def read(self) -> Envelopes:
        found = await self.reader.signatures(self.reference)
        assert isinstance(found, Envelopes)
        return found


@pytest.fixture
async def shelves() -> AsyncIterator[Shelves]:
    with RegistryDouble() as double:
        async with aiohttp.ClientSession() as session:
            config = RegistryConfig(host=double.host, writer=double.host, plain_http=True)
            digest = double.publish(REPOSITORY, COMMIT)
            yield Shelves(double, RegistryReader(session, config), f"{REPOSITORY}@{digest}")


async def test_signatures_are_read_beside_the_facts(shelves: Shelves) -> None:
    assert await shelves.read() == Envelopes(shelves.reference)
    first, second = shelves.sign(ANNA), shelves.sign(CARA)
    assert await shelves.read() == Envelopes(shelves.reference, (first, second))
    found = await shelves.reader.find(REPOSITORY, COMMIT)
    assert isinstance(found, Artifact)
    assert found.facts is not None


async def test_a_signature_is_fetched_once_and_the_list_each_time(shelves: Shelves) -> None:
    shelves.sign(ANNA)
    await shelves.read()
    shelves.double.requests.clear()
    before = await shelves.read()
    assert before.contents
    assert not [request for request in shelves.double.requests if "/blobs/" in request]
    del shelves.double.content[f"/v2/{REPOSITORY}/manifests/{fallback_tag(shelves.subject)}"]
    assert (await shelves.read()).contents == (), "what was taken away is gone"


async def test_a_registry_that_is_away_takes_no_signature_back(shelves: Shelves) -> None:
    shelves.double.down = True
    away = await shelves.reader.signatures(shelves.reference)
    assert isinstance(away, Unreadable)
    assert away.reason == "RegistryUnavailable"
    shelves.double.down = False
    shelves.sign(ANNA)
    seen = await shelves.read()
    shelves.double.down = True
    assert await shelves.read() == seen


async def test_one_bad_signature_does_not_hide_a_good_one(shelves: Shelves) -> None:
    bad = shelves.sign(BERT)
    good = shelves.sign(ANNA)
    path = f"/v2/{REPOSITORY}/blobs/{Digest.of(bad)}"
    shelves.double.content[path] = ("x", bad + b" ")
    found = await shelves.read()
    assert found.contents == (good,)
    assert "cannot be read" in found.defects[0]
    del shelves.double.content[path]
    assert "not there" in (await shelves.read()).defects[0]


async def test_a_signature_manifest_about_another_artifact_is_a_defect(shelves: Shelves) -> None:
    other = shelves.double.publish(REPOSITORY, "f" * 40)
    shelves.double.sign(f"{REPOSITORY}@{other}", a_release(Digest.parse(other), ANNA), ANNA.key_id)
    base = f"/v2/{REPOSITORY}/manifests"
    theirs = f"{base}/{fallback_tag(Digest.parse(other))}"
    shelves.double.content[f"{base}/{fallback_tag(shelves.subject)}"] = shelves.double.content[theirs]
    found = await shelves.read()
    assert found.contents == ()
    assert "the subject" in found.defects[0]


async def test_a_huge_envelope_is_not_read(shelves: Shelves) -> None:
    shelves.double.sign(shelves.reference, b"x" * (ENVELOPE_BYTES + 1), ANNA.key_id)
    found = await shelves.read()
    assert found.contents == ()
    assert "at most" in found.defects[0]


async def test_a_heap_of_signatures_is_not_read_to_its_end(
    shelves: Shelves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referrer, "MAX_REFERRERS", 6)
    for number in range(8):
        shelves.double.sign(shelves.reference, b"%d" % number + b"x" * (ENVELOPE_BYTES - 1), ANNA.key_id)
    assert "larger than" in (await shelves.read()).defects[-1]
    for number in range(8):
        shelves.double.sign(shelves.reference, b"%d" % number, ANNA.key_id)
    assert (await shelves.read()).contents == (b"2", b"3", b"4", b"5", b"6", b"7")


@pytest.mark.parametrize("index", [b"junk", b'{"manifests": 7}', b'{"manifests": [7, {}]}', b"[]"])
async def test_a_list_that_is_none_is_no_signature_and_no_crash(shelves: Shelves, index: bytes) -> None:
    path = f"/v2/{REPOSITORY}/manifests/{fallback_tag(shelves.subject)}"
    shelves.double.content[path] = ("x", index)
    found = await shelves.read()
    assert found.contents == ()


async def test_a_registry_with_the_referrers_api_is_asked_by_it() -> None:
    subject = Digest.of(b"subject")
    envelope = a_release(subject, ANNA)
    manifest = referrer.encode(Descriptor(MANIFEST_TYPE, subject, 7), envelope, ANNA.key_id)
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        if "/referrers/" in request.path:
            entry = {"artifactType": referrer.SIGNATURE_TYPE, "digest": str(Digest.of(manifest))}
            return web.json_response({"manifests": [entry, {"artifactType": "application/other"}]})
        return web.Response(body=manifest if "/manifests/" in request.path else envelope)

    application = web.Application()
    application.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host = f"127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            reader = RegistryReader(session, RegistryConfig(host=host, writer=host, plain_http=True))
            found = await reader.signatures(f"{REPOSITORY}@{subject}")
    finally:
        await runner.cleanup()
    assert found == Envelopes(f"{REPOSITORY}@{subject}", (envelope,))
    assert "signature.v1%2Bjson" in asked[0]


# -- a whole look -----------------------------------------------------------------------------------------


def a_secret(**entries: bytes) -> dict[str, Any]:
    data = {name: base64.b64encode(value).decode() for name, value in entries.items()}
    return {"kind": "Secret", "metadata": {"name": "vendor-keys", "namespace": "models"}, "data": data}


class SignedRegistry:
    """A registry double that also knows signatures; `asked` are the artifacts that they were read of."""

    def __init__(self, bench: Bench) -> None:
        self.signatures_there: Envelopes | Unreadable = Envelopes(ARTIFACT.reference)
        self.asked_of: list[str] = []
        bench.registry.found = ARTIFACT
        bench.registry.signatures = self.read  # type: ignore[attr-defined]
        bench.cluster.put(a_body(verification=verification()))

    async def read(self, reference: str) -> Envelopes | Unreadable:
        self.asked_of.append(reference)
        return self.signatures_there


async def look(bench: Bench, times: int = 4) -> None:
    for _ in range(times):
        try:
            await bench.run()
        except TryLater:
            continue


async def test_a_missing_secret_then_a_missing_signature_then_a_served_model() -> None:
    bench = Bench()
    registry = SignedRegistry(bench)
    await look(bench)
    assert bench.reason() == "KeysUnusable"
    bench.cluster.put(a_secret(**{"anna.pub": ANNA.public.pem()}))
    await look(bench)
    assert bench.reason() == "NotSigned"
    assert not [one for one in bench.requests if one.startswith("apply RayService")]
    registry.signatures_there = Envelopes(ARTIFACT.reference, (a_release(SUBJECT, ANNA),))
    await look(bench)
    assert [one for one in bench.requests if one.startswith("apply RayService")]
    assert set(registry.asked_of) == {ARTIFACT.reference}


async def test_a_changed_secret_is_noticed_though_nothing_told_of_it() -> None:
    bench = Bench()
    registry = SignedRegistry(bench)
    registry.signatures_there = Envelopes(ARTIFACT.reference, (a_release(SUBJECT, ANNA),))
    bench.cluster.put(a_secret(**{"anna.pub": ANNA.public.pem()}))
    await look(bench)
    assert next(c for c in bench.status()["conditions"] if c["type"] == "Verified")["status"] == "True"
    bench.cluster.put(a_secret(**{"bert.pub": BERT.public.pem()}))
    await look(bench, 1)
    assert bench.reason() == "NotSigned"


async def test_a_secret_that_may_not_be_read_is_a_condition() -> None:
    bench = Bench()
    SignedRegistry(bench)
    bench.cluster.refuse["get Secret"] = Refused("secrets is forbidden")
    await look(bench)
    assert bench.reason() == "KeysUnusable"
    assert any("is forbidden" in c["message"] for c in bench.status()["conditions"])


async def test_while_the_registry_is_away_the_recorded_artifact_is_judged() -> None:
    bench = Bench()
    registry = SignedRegistry(bench)
    registry.signatures_there = Envelopes(ARTIFACT.reference, (a_release(SUBJECT, ANNA),))
    bench.cluster.put(a_secret(**{"anna.pub": ANNA.public.pem()}))
    await look(bench)
    bench.registry.found = Unreadable("RegistryUnavailable", "no answer")
    await look(bench, 2)
    verified = next(c for c in bench.status()["conditions"] if c["type"] == "Verified")
    assert (verified["status"], verified["reason"]) == ("True", "SignaturesVerified")


async def test_a_model_that_asks_for_no_signatures_costs_no_look_at_secrets() -> None:
    bench = Bench()
    bench.registry.found = ARTIFACT
    await bench.settle()
    assert not [one for one in bench.requests if "Secret" in one]
