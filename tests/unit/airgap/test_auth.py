# SPDX-License-Identifier: Apache-2.0
"""What registries and docker configs say about logins, when they say it badly."""

from __future__ import annotations

from sovereign_airgap.auth import Challenge


def test_a_challenge_is_read_to_its_bound_and_no_further() -> None:
    beginning = 'Bearer realm="https://a/t",'
    within = Challenge.parse(beginning + "," * (4096 - len(beginning) - 9) + "service=s")
    assert within.parameters == {"realm": "https://a/t", "service": "s"}
    beyond = Challenge.parse(beginning + "x" * (4096 - len(beginning)) + ",service=s")
    assert beyond.parameters == {"realm": "https://a/t"}


def test_a_parameter_is_named_by_a_whole_word() -> None:
    """One that began within a word would cost a search from each of its letters."""
    assert Challenge.parse('Bearer 1realm="https://a/t",_b=c,service=s').parameters == {"service": "s"}
