# SPDX-License-Identifier: Apache-2.0
"""What was loaded before, who vouched for it, and how two lists of referrers become one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap.bundle.index import Index
from sovereign_airgap.bundle.referrers import merged
from sovereign_airgap.bundle.state import UNSIGNED, Seen, State, after, require_not_older
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import MalformedManifest, OlderVersion
from sovereign_airgap.facts import ARTIFACT_TYPE as FACTS_TYPE
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE
from sovereign_airgap.strict_json import Json

ANNA, BERT = "a" * 64, "b" * 64


def digest(version: int) -> Digest:
    return Digest.of(str(version).encode())


def a_state(**versions: int) -> State:
    keys = {{"anna": ANNA, "bert": BERT}.get(who, who): Seen(at, digest(at)) for who, at in versions.items()}
    newest = max(versions.values())
    return State("site", newest, digest(newest), keys)


@pytest.mark.parametrize(
    ("state", "version", "trusted", "refused"),
    [
        (None, 1, (), False),
        (a_state(anna=3), 4, (ANNA,), False),
        (a_state(anna=3), 3, (ANNA,), False),
        (a_state(anna=3), 2, (ANNA,), True),
        (a_state(anna=3), 2, (BERT,), False),
        (a_state(anna=3), 2, (ANNA, BERT), True),
        (a_state(anna=3), 2, (), True),
        (a_state(anna=3, bert=1), 2, (ANNA, BERT), True),
        (a_state(anna=3, bert=1), 2, (BERT,), False),
        (a_state(anna=4, bert=5), 4, (ANNA, BERT), True),
        (a_state(anna=4, bert=5), 4, (ANNA,), False),
        (a_state(unsigned=3), 2, (ANNA,), True),
        (a_state(unsigned=3, anna=1), 2, (ANNA,), True),
    ],
)
def test_a_version_is_compared_with_what_every_trusted_key_has_vouched_for(
    state: State | None, version: int, trusted: tuple[str, ...], refused: bool
) -> None:
    """Who of them has signed this one is not asked: a signature is a file, and files can be removed."""
    index = Index("site", version)
    if refused:
        with pytest.raises(OlderVersion, match="--allow-downgrade"):
            require_not_older(state, index, digest(version), trusted)
    else:
        require_not_older(state, index, digest(version), trusted)


def test_one_version_has_one_content() -> None:
    state = a_state(anna=3)
    with pytest.raises(OlderVersion, match="raise the version"):
        require_not_older(state, Index("site", 3), digest(33), (ANNA,))


def test_a_wished_downgrade_says_what_is_loaded_and_forgets_no_higher_version() -> None:
    state = after(a_state(anna=5), Index("site", 3), digest(3), (ANNA, BERT))
    assert (state.version, state.index) == (3, digest(3))
    assert state.keys == {ANNA: Seen(5, digest(5)), BERT: Seen(3, digest(3))}
    assert after(None, Index("site", 3), digest(3), ()).keys == {UNSIGNED: Seen(3, digest(3))}


def test_a_record_is_read_as_it_was_written() -> None:
    state = a_state(anna=5, unsigned=2)
    assert State.parse(state.encode()) == state
    assert State.parse(state.encode()).encode() == state.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name":"site","version":1,"index":"sha256:0","keys":{}}',
        b'{"name":"site","version":true,"index":"%s","keys":{}}' % str(digest(1)).encode(),
        b'{"name":"site","version":-1,"index":"%s","keys":{}}' % str(digest(1)).encode(),
        b'{"name":"site","version":1,"version":2,"index":"%s","keys":{}}' % str(digest(1)).encode(),
        b'{"name":"site","version":1,"index":"%s","keys":{"a":7}}' % str(digest(1)).encode(),
        b'{"name":"site","version":1,"index":"%s","keys":[]}' % str(digest(1)).encode(),
    ],
)
def test_a_record_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedManifest):
        State.parse(content)


# -- referrers ----------------------------------------------------------------------------------------------

SIGNATURE = "application/vnd.sovereign.signature.v1+json"


def entry(name: str, artifact_type: str | None = None, **annotations: str) -> dict[str, Json]:
    found: dict[str, Json] = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(name.encode())), "size": 7}
    if artifact_type is not None:
        found["artifactType"] = artifact_type
    return {**found, "annotations": {**annotations}} if annotations else found


def a_list(*entries: dict[str, Json]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*entries]}).encode()


def names(index: bytes) -> list[str]:
    known = {str(Digest.of(name.encode())): name for name in ("a", "b", "old", "new", "c")}
    return [known[each["digest"]] for each in json.loads(index)["manifests"]]


def test_where_there_was_no_list_ours_is_taken_as_it_is() -> None:
    ours = a_list(entry("new", FACTS_TYPE))
    assert merged(None, ours, {}, lambda _: True) == ours


def test_where_nothing_is_new_theirs_stays_as_it_is() -> None:
    before = a_list(entry("a", "x/y"), entry("b", "x/y"))
    assert merged(before, a_list(entry("b", "x/y")), {}, lambda _: True) == before


def test_signatures_of_different_keys_stay_and_one_keys_is_replaced() -> None:
    before = a_list(entry("a", SIGNATURE, key="anna"), entry("old", SIGNATURE, key="bert"))
    ours = a_list(entry("new", SIGNATURE, key="bert"))
    assert names(merged(before, ours, {}, lambda _: True)) == ["a", "new"]


def test_facts_are_replaced_and_strangers_of_one_type_are_not() -> None:
    before = a_list(entry("old", FACTS_TYPE), entry("a", "x/y"))
    ours = a_list(entry("new", FACTS_TYPE), entry("b", "x/y"))
    assert names(merged(before, ours, {}, lambda _: True)) == ["a", "new", "b"]


def test_a_type_that_the_list_does_not_tell_comes_from_the_manifest() -> None:
    before = a_list(entry("old", FACTS_TYPE))
    types = {str(Digest.of(b"new")): FACTS_TYPE}
    assert names(merged(before, a_list(entry("new")), types, lambda _: True)) == ["new"]


def test_what_the_registry_no_longer_holds_is_left_out() -> None:
    before = a_list(entry("old", "x/y"), entry("a", "x/y"))
    gone = Digest.of(b"old")
    assert names(merged(before, a_list(entry("new", "x/y")), {}, lambda digest: digest != gone)) == [
        "a",
        "new",
    ]


@given(st.binary(max_size=60) | st.from_regex(rb'\{"manifests": ?(\[[0-9, ]*\]|\{\}|7)\}', fullmatch=True))
def test_a_list_that_is_none_is_refused_or_empty(content: bytes) -> None:
    try:
        merged(content, a_list(entry("new", FACTS_TYPE)), {}, lambda _: True)
    except MalformedManifest:
        return
    assert json.loads(content)["manifests"] == []
