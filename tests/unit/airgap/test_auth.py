# SPDX-License-Identifier: Apache-2.0
"""What registries and docker configs say about logins, when they say it badly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sovereign_airgap.auth import Challenge, read_docker_config
from sovereign_airgap.errors import CredentialsUnreadable


def test_a_challenge_is_read_to_its_bound_and_no_further() -> None:
    beginning = 'Bearer realm="https://a/t",'
    within = Challenge.parse(beginning + "," * (4096 - len(beginning) - 9) + "service=s")
    assert within.parameters == {"realm": "https://a/t", "service": "s"}
    beyond = Challenge.parse(beginning + "x" * (4096 - len(beginning)) + ",service=s")
    assert beyond.parameters == {"realm": "https://a/t"}


def test_a_parameter_is_named_by_a_whole_word() -> None:
    """One that began within a word would cost a search from each of its letters."""
    assert Challenge.parse('Bearer 1realm="https://a/t",_b=c,service=s').parameters == {"service": "s"}


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "bWU6cGFzcw\u00fc="},
        {"auth": "bWU6/w=="},
        {"auth": "\ud800"},
        {"username": "\ud800", "password": "p"},
        {"username": "u", "password": "\udfff"},
        {"identitytoken": "\ud800"},
    ],
    ids=json.dumps,
)
def test_a_login_that_cannot_be_sent_is_named_and_not_told(tmp_path: Path, entry: dict[str, str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {"h": entry}}))
    with pytest.raises(CredentialsUnreadable, match=f"for h in {path}") as caught:
        read_docker_config(path, "h")
    assert not any(value in str(caught.value) for value in entry.values() if len(value) > 1)
