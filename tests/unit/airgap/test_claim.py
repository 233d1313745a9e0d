# SPDX-License-Identifier: Apache-2.0
"""One load into one place at a time: who holds it, who gives up, and how long a dead one is in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.bundle import claim as claims
from sovereign_airgap.bundle.claim import TAG_PREFIX, Claim, Claimant, claimed, has_ended, this_process
from sovereign_airgap.bundle.place import opened
from sovereign_airgap.errors import LoadInProgress, MalformedManifest
from sovereign_airgap.manifest import MANIFEST_TYPE
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.registry_double import RegistryDouble, _Handler, status


@contextmanager
def a_state(double: RegistryDouble) -> Iterator[Registry]:
    with (
        Pace(QUICK) as pace,
        opened(OciReference(double.host), Access(plain_http=True), pace) as place,
    ):
        yield place.repository("sovereign/state")


@pytest.fixture
def state(registry: RegistryDouble) -> Iterator[Registry]:
    with a_state(registry) as opened_state:
        yield opened_state


def claim_tags(registry: RegistryDouble) -> list[str]:
    return [tag for tag in registry.tags if tag.startswith(TAG_PREFIX)]


def rewrite(registry: RegistryDouble, **changes: str) -> None:
    """Changes what the only claim says about itself."""
    [tag] = claim_tags(registry)
    content, media_type = registry.manifests[tag]
    document = json.loads(content)
    document["annotations"] |= {f"dev.sovereign.claim.{key}": value for key, value in changes.items()}
    registry.manifests[tag] = (json.dumps(document).encode(), media_type)


def test_whoever_comes_second_gives_up_at_once_and_hears_who_is_there(
    registry: RegistryDouble, state: Registry
) -> None:
    with claimed(state, "the load of site 3"):
        begun = time.monotonic()
        with pytest.raises(LoadInProgress) as caught, claimed(state, "the load of site 4"):
            pytest.fail("two held the place")
        assert time.monotonic() - begun < claims.DOOR_SECONDS / 2
        assert "the load of site 3" in str(caught.value)
        assert len(claim_tags(registry)) == 1
    assert claim_tags(registry) == []
    with claimed(state, "the load of site 4"):
        pass


def test_of_many_that_come_together_exactly_one_holds(registry: RegistryDouble) -> None:
    together = threading.Barrier(5)
    ended = threading.Barrier(5)
    held: list[int] = []
    refused: list[str] = []

    def come(name: int) -> None:
        with a_state(registry) as state:
            together.wait(10)
            try:
                with claimed(state, f"load {name}"):
                    held.append(name)
                    ended.wait(30)
                    return
            except LoadInProgress as error:
                refused.append(str(error))
            ended.wait(30)

    threads = [threading.Thread(target=come, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(held) == 1
    assert len(refused) == 4
    assert claim_tags(registry) == []


def test_a_killed_process_of_this_machine_is_in_nobodys_way(
    registry: RegistryDouble, state: Registry
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = this_process().split(" ")
    name = " ".join([*process[:2], str(child.pid), claims._start_of(child.pid)])
    claim = Claim(state, "a load that will be killed")
    claim.acquire()
    rewrite(registry, process=name)
    with pytest.raises(LoadInProgress), claimed(state, "the next"):
        pass

    child.kill()
    child.communicate()

    assert has_ended(name)
    with claimed(state, "the next"):
        assert len(claim_tags(registry)) == 1


def test_another_machines_claim_ends_by_the_registrys_clock(
    registry: RegistryDouble, state: Registry
) -> None:
    claim = Claim(state, "a load elsewhere")
    claim.acquire()
    rewrite(registry, process="another-boot pid:[1] 7 7", host="elsewhere")
    with pytest.raises(LoadInProgress, match="elsewhere"), claimed(state, "the next"):
        pass

    rewrite(registry, until=str(int(time.time()) - 60))

    with claimed(state, "the next"):
        assert len(claim_tags(registry)) == 1


def test_a_claim_is_renewed_for_as_long_as_it_is_held(registry: RegistryDouble, state: Registry) -> None:
    with claimed(state, "a long load", lease=5.0) as claim:
        [tag] = claim_tags(registry)
        first = Claimant.parse(tag, registry.manifests[tag][0])
        ends = time.monotonic() + 30
        while Claimant.parse(tag, registry.manifests[tag][0]).until == first.until:
            assert time.monotonic() < ends, "nobody renewed it"
            time.sleep(0.05)
        claim.require()
        kept = [name for name in registry.manifests if name.startswith("sha256:")]
        assert len(kept) <= 2, "renewals pile up"


def test_a_holder_that_could_not_renew_moves_nothing_more(registry: RegistryDouble, state: Registry) -> None:
    with claimed(state, "a stalled load", lease=claims._CLOCK_SECONDS + 0.2) as claim:
        registry.next("PUT manifests", *[status(503)] * 50)
        ends = time.monotonic() + 30
        with pytest.raises(LoadInProgress, match="renewed"):
            while time.monotonic() < ends:
                claim.require()
                time.sleep(0.02)


def test_a_registry_that_deletes_no_tags_is_left_with_a_released_claim(
    registry: RegistryDouble, state: Registry
) -> None:
    def refuse(handler: _Handler) -> bool:
        handler.reply(405)
        return True

    registry.next("DELETE manifests", *[refuse] * 20)
    with claimed(state, "first"):
        pass
    assert len(claim_tags(registry)) == 1
    with claimed(state, "second"):
        pass


def test_a_failed_run_takes_its_claim_away(registry: RegistryDouble, state: Registry) -> None:
    def fail() -> None:
        with claimed(state, "a load that fails"):
            state.pace.stop()
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError):
        fail()
    assert claim_tags(registry) == []


def test_what_is_no_claim_is_not_taken_for_one(registry: RegistryDouble, state: Registry) -> None:
    registry.manifests[f"{TAG_PREFIX}0"] = (b'{"schemaVersion":2}', MANIFEST_TYPE)
    with pytest.raises(MalformedManifest), claimed(state, "a load"):
        pass


@pytest.mark.parametrize("process", ["", "x", "a b c d", "another pid:[1] 1 1"])
def test_a_process_that_cannot_be_seen_has_not_ended(process: str) -> None:
    assert not has_ended(process)


def test_this_process_has_not_ended() -> None:
    assert this_process()
    assert not has_ended(this_process())
