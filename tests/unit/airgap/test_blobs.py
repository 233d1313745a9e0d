# SPDX-License-Identifier: Apache-2.0
"""Reading blobs from a registry that sends us elsewhere, or that breaks off again and again."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.errors import RegistryUnavailable
from sovereign_airgap.pull import PullOptions
from tests.unit.airgap.models import some_bytes
from tests.unit.airgap.origin import Request, an_origin
from tests.unit.airgap.registry_double import Fault, RegistryDouble, _Handler, cut_body
from tests.unit.airgap.shelf import FILES, Shelf


@pytest.fixture
def with_login(registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path) -> Shelf:
    """A registry that wants a login, and a pull that has it."""
    config = tmp_path / "docker.json"
    auth = base64.b64encode(b"robot:s3cret").decode()
    config.write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    options = dataclasses.replace(pull_options, access=Access(plain_http=True, docker_config=config))
    shelf = Shelf(registry, options, tmp_path / "weights")
    registry.login, registry.bearer = ("robot", "s3cret"), True
    return shelf


def redirect(url: str) -> Fault:
    def fault(handler: _Handler) -> bool:
        handler.reply(307, Location=url)
        return True

    return fault


@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_a_storage_that_asks_for_the_login_does_not_get_it(with_login: Shelf, scheme: str) -> None:
    with an_origin(lambda request: request.reply(200, b'{"token":"t"}')) as thief:

        def ask(request: Request) -> None:
            request.reply(401, WWW_Authenticate=f'{scheme} realm="{thief.url}/token",service="x"')

        with an_origin(ask) as storage:
            with_login.registry.next("GET blobs", *[redirect(f"{storage.url}/x")] * 40)
            with pytest.raises(RegistryUnavailable, match=f"status 401 from {storage.url}"):
                with_login.pull()
            assert {authorization for _, authorization in storage.asked} == {None}
        assert thief.asked == []


@pytest.mark.parametrize("refused", [401, 403])
def test_a_signed_address_that_has_ended_is_asked_for_again(with_login: Shelf, refused: int) -> None:
    with an_origin(lambda request: request.reply(refused)) as storage:
        with_login.registry.next("GET blobs", redirect(f"{storage.url}/x"))
        with_login.pull()
        assert len(storage.asked) == 1
    with_login.require_whole(FILES)


MIB = 1024 * 1024
WEIGHTS = {"model.safetensors": some_bytes(64 * 1024) * 80}


@pytest.fixture
def without_ranges(registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path) -> Shelf:
    """A registry that begins every blob at its first byte."""
    registry.ignores_range = True
    shelf = Shelf(registry, pull_options, tmp_path / "weights")
    shelf.reference = shelf.put(WEIGHTS)
    return shelf


def test_a_registry_that_only_repeats_itself_is_given_up(without_ranges: Shelf) -> None:
    without_ranges.registry.next("GET blobs", *[cut_body(3 * MIB), cut_body(MIB)] * 20)
    with pytest.raises(RegistryUnavailable):
        without_ranges.pull()
    assert without_ranges.gets == without_ranges.options.patience.attempts


def test_a_registry_that_gets_farther_each_time_is_not(without_ranges: Shelf) -> None:
    without_ranges.registry.next("GET blobs", cut_body(0), *[cut_body(at * MIB // 2) for at in (2, 4, 6, 8)])
    without_ranges.pull()
    without_ranges.require_whole(WEIGHTS)
