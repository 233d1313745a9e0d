# SPDX-License-Identifier: Apache-2.0
"""Reading blobs from a registry that sends us elsewhere, or that breaks off again and again."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.errors import RegistryForbidden, RegistryUnavailable, SovereignError
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


def challenge(realm: str) -> Fault:
    def fault(handler: _Handler) -> bool:
        handler.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="x"')
        return True

    return fault


@pytest.fixture
def at_first_open(registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path) -> Shelf:
    """A registry that asks for nothing before the first blob is read."""
    shelf = Shelf(registry, pull_options, tmp_path / "weights")
    shelf.reference = shelf.put({"model.safetensors": FILES["model.safetensors"]})
    return shelf


def test_a_token_service_that_is_down_is_an_outage(at_first_open: Shelf) -> None:
    url = "http://127.0.0.1:1"
    at_first_open.registry.next("GET blobs", *[challenge(f"{url}/token")] * 40)
    with pytest.raises(RegistryUnavailable, match=f"no token from {url}: ConnectError"):
        at_first_open.pull()
    assert at_first_open.gets == at_first_open.options.patience.attempts


def test_a_token_service_that_comes_back_is_asked_again(at_first_open: Shelf) -> None:
    answers = [503, 503, 503, 200]
    with an_origin(lambda request: request.reply(answers.pop(0), b'{"token":"t"}')) as tokens:
        at_first_open.registry.next("GET blobs", *[challenge(f"{tokens.url}/token")] * 4)
        at_first_open.pull(patience=dataclasses.replace(at_first_open.options.patience, attempts=6))
    assert answers == []
    at_first_open.require_whole({"model.safetensors": FILES["model.safetensors"]})


@pytest.mark.parametrize(
    ("realm", "error"),
    [
        ("http://exa mple/token", RegistryUnavailable),
        ("http://a\x7f/token", RegistryUnavailable),
        (f"http://{'a' * 70}/token", RegistryUnavailable),
        ("http://[/token", RegistryForbidden),
        ("/token", RegistryForbidden),
        ("", RegistryForbidden),
    ],
)
def test_a_place_for_tokens_that_is_none_is_named(
    at_first_open: Shelf, realm: str, error: type[SovereignError]
) -> None:
    at_first_open.registry.next("GET blobs", *[challenge(realm)] * 40)
    with pytest.raises(error):
        at_first_open.pull()


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
