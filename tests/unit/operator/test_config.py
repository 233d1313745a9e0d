# SPDX-License-Identifier: Apache-2.0
"""The operator's configuration file: defaults that are safe, and misspelt keys that do not pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sovereign_operator.config import load_config, parse_config
from tests.unit.operator.builders import CANARY, OUTSIDE, a_config, a_sealing_config

LEAST = "registry: {host: 'r:5000', writer: 'r:5001'}\nimages: {airgap: x}\n"


def test_defaults_keep_the_outside_closed() -> None:
    config = parse_config(LEAST)
    assert config.external_sources.allowed is False
    assert config.images.require_digest is True
    assert config.registry.plain_http is False
    assert config.watch_namespaces == ()
    assert config.seal == "Required"
    assert config.probe.canary is None


@pytest.mark.parametrize(
    "line",
    [
        "externalSource: {allowed: true}",
        "seal: Off",
        "images: {airgap: x, requireDigests: false}",
        "watch: [a]",
    ],
)
def test_a_misspelt_key_or_value_is_an_error_at_start(line: str) -> None:
    with pytest.raises(ValidationError):
        parse_config(
            LEAST.replace("images: {airgap: x}\n", "") + line if line.startswith("images") else LEAST + line
        )


def test_the_file_is_found_through_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(LEAST + "systemNamespace: here\n", encoding="utf-8")
    assert load_config({"SOVEREIGN_CONFIG": str(path)}).system_namespace == "here"


@pytest.mark.parametrize(
    ("endpoint", "extra", "ports"),
    [
        ("https://huggingface.co", [], (443,)),
        ("http://hub.site", [], (80, 443)),
        ("https://hub.site:8443", [9000], (443, 8443, 9000)),
    ],
)
def test_the_ports_of_a_hub(endpoint: str, extra: list[int], ports: tuple[int, ...]) -> None:
    sources = a_config(externalSources={"endpoint": endpoint, "extraPorts": extra}).external_sources
    assert sources.ports == ports


OWN = {"host": "registry.site:443", "writer": "registry.site:443"}


def test_the_addresses_of_a_registry_are_written_as_the_api_server_writes_them() -> None:
    given = ["2001:DB8::1/64", "10.1.2.3/8", "10.0.0.0/8", "192.0.2.7/32"]
    cidrs = a_config(registry=OWN | {"cidrs": given}).registry.cidrs
    assert cidrs == ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/64")


@pytest.mark.parametrize(
    ("cidr", "words"),
    [
        ("0.0.0.0/0", "at most a /8 of IPv4 or a /32 of IPv6, found 0.0.0.0/0"),
        ("1.2.3.4/0", "found 0.0.0.0/0"),
        ("0.0.0.0/00", "found 0.0.0.0/0"),
        ("128.0.0.0/1", "found 128.0.0.0/1"),
        ("10.0.0.0/7", "found 10.0.0.0/7"),
        ("10.0.0.0/254.0.0.0", "found 10.0.0.0/7"),
        ("::/0", "found ::/0"),
        ("2001:db8::/31", "found 2001:db8::/31"),
        ("::ffff:0.0.0.0/96", "found ::ffff:"),
        ("::/64", "found ::/64"),
        ("999.1.1.1/99", "such as 10.1.0.0/16, found 999.1.1.1/99"),
        ("registry.site", "such as 10.1.0.0/16, found registry.site"),
    ],
)
def test_a_registry_that_could_be_anywhere_is_an_error_at_start(cidr: str, words: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(words)):
        a_config(registry=OWN | {"cidrs": ["10.0.0.0/8", cidr]})


def test_the_targets_of_a_probe_are_read() -> None:
    config = a_sealing_config([OUTSIDE])
    assert config.probe.canary == CANARY
    assert [target.target().name for target in config.probe.targets] == ["outside-tcp-443"]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"canary": "not a name"}, "canary"),
        ({"timeoutSeconds": 60}, "timeoutSeconds"),
        ({"settleSeconds": 1000}, "settleSeconds"),
        ({"intervalSeconds": 0}, "intervalSeconds"),
        ({"targets": [{"name": "x", "protocol": "TCP", "address": "192.0.2.10"}]}, "address, port"),
        ({"targets": [{"name": "x", "protocol": "SCTP", "address": "192.0.2.10"}]}, "protocol"),
        ({"targets": [OUTSIDE, OUTSIDE]}, "occurs twice"),
        ({"targets": [OUTSIDE | {"name": "own-node"}]}, "occurs twice"),
        ({"targets": [OUTSIDE | {"name": "canary-tcp"}]}, "is a path of every run"),
        ({"targets": [OUTSIDE | {"name": f"x{n}"} for n in range(47)]}, "at most 46"),
        ({"target": []}, "target"),
    ],
)
def test_a_target_that_no_prober_would_take_is_an_error_at_start(
    probe: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        a_config(probe=probe)


def test_there_is_no_cache_on_nodes_unless_it_is_asked_for_and_what_it_then_is() -> None:
    assert a_config().node_cache is None
    cache = a_config(nodeCache={}).node_cache
    assert cache is not None
    assert (cache.claim, cache.path) == ("sovereign-cache", "/var/lib/sovereign/cache")
    assert (cache.budget_bytes, cache.reserve_bytes) == (0, 10 * 2**30)
    assert cache.scrub_interval_seconds == 7 * 86400


@pytest.mark.parametrize("path", ["", "/", "relative/cache", "/cache", "/var/../etc/x", "/var//x", "/var/x/"])
def test_fetch_jobs_are_not_given_the_node_itself(path: str) -> None:
    with pytest.raises(ValidationError, match="absolute path"):
        a_config(nodeCache={"path": path})
