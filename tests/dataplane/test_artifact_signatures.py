# SPDX-License-Identifier: Apache-2.0
"""Signatures beside an artifact in a real registry: written by the command, read by both planes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.artifact_signatures import artifact_signed_by, sign_artifact
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import NotSigned
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.signing.statement import RELEASE
from sovereign_airgap.signing.threshold import Claim, verify_envelopes
from sovereign_operator.config import RegistryConfig
from sovereign_operator.registry import RegistryReader
from sovereign_operator.values import Artifact, Envelopes, Found, Unreadable
from tests.dataplane.site import Site
from tests.unit.airgap.signers import ANNA, CARA, WHEN


@contextmanager
def opened(site: Site) -> Iterator[Registry]:
    reference = OciReference.parse(site.target)
    with (
        Pace(site.patience) as pace,
        Access(plain_http=True).registry(reference, pace, push=True) as registry,
    ):
        yield registry


def seen_by_the_operator(site: Site, digest: str) -> tuple[Found, Envelopes | Unreadable]:
    async def look() -> tuple[Found, Envelopes | Unreadable]:
        host = site.registry_server.host
        async with aiohttp.ClientSession() as session:
            reader = RegistryReader(session, RegistryConfig(host=host, writer=host, plain_http=True))
            reference = f"{site.repository}@{digest}"
            return await reader.find(site.repository, digest), await reader.signatures(reference)

    return asyncio.run(look())


def test_signatures_survive_another_mirror_and_are_read_by_both_planes(site: Site) -> None:
    digest = site.mirror().digest
    subject = Digest.parse(digest)
    keys = [ANNA.public, CARA.public]
    with opened(site) as registry:
        with pytest.raises(NotSigned):
            artifact_signed_by(registry, subject, keys, 1)
        for key in (ANNA, CARA):
            sign_artifact(registry, subject, key, WHEN)
        assert site.mirror().digest == digest
        assert len(artifact_signed_by(registry, subject, keys, 2)) == 2
    found, signatures = seen_by_the_operator(site, digest)
    assert isinstance(found, Artifact)
    assert found.facts is not None, "facts and signatures share the list of referrers"
    assert isinstance(signatures, Envelopes)
    assert not signatures.defects
    assert len(verify_envelopes(Claim(RELEASE, subject), signatures.contents, keys, 2)) == 2


def test_a_signature_is_no_tag_and_no_change_of_the_artifact(site: Site) -> None:
    digest = site.mirror().digest
    before = site.tags()
    with opened(site) as registry:
        sign_artifact(registry, Digest.parse(digest), ANNA, WHEN)
    assert site.tags() == before
    assert site.mirror().digest == digest
