# SPDX-License-Identifier: Apache-2.0
"""Digests, references, names and strict JSON: what a parser takes it gives back, what it refuses is named."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_airgap import errors, strict_json
from sovereign_airgap.digest import Digest, git_blob_id, lfs_pointer
from sovereign_airgap.errors import InvalidReference, NameRequired, SovereignError, UnsafeFileName
from sovereign_airgap.names import defect_of, require_not_hostile, require_safe_set
from sovereign_airgap.reference import ArtifactReference, HubReference, OciReference

HEX = "0123456789abcdef"
COMMIT = "a" * 40
names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
repositories = st.lists(names, min_size=1, max_size=4).map("/".join)
hosts = st.one_of(names, st.tuples(names, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
tags = st.none() | st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)
digests = st.text(HEX, min_size=64, max_size=64).map(Digest)


@given(hosts, repositories, tags, st.none() | digests)
def test_a_registry_reference_reads_back_what_it_writes(
    host: str, repository: str, tag: str | None, digest: Digest | None
) -> None:
    reference = OciReference(host, repository, tag, digest)
    assert OciReference.parse(str(reference)) == reference == OciReference.parse(reference.name)


@given(repositories, digests)
def test_an_artifact_reference_reads_back_what_it_writes(repository: str, digest: Digest) -> None:
    reference = ArtifactReference(repository, digest)
    assert ArtifactReference.parse(str(reference)) == reference
    assert reference.at("host:5000").name == f"host:5000/{reference}"


@given(st.text(max_size=60))
def test_a_parser_gives_a_value_or_a_sentence(text: str) -> None:
    for parse in (Digest.parse, HubReference.parse, OciReference.parse, ArtifactReference.parse):
        try:
            parse(text)
        except SovereignError as error:
            assert isinstance(error, InvalidReference)


@pytest.mark.parametrize(
    "text",
    [
        "hf://org/name", "hf://org/name@main", f"hf://name@{COMMIT}", f"hf://org/../x@{COMMIT}",
        f"https://org/name@{COMMIT}", f"hf://org/name@{COMMIT.upper()}", f"hf://org/name/x@{COMMIT}",
    ],
)  # fmt: skip
def test_a_source_that_is_not_pinned_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        HubReference.parse(text)


@pytest.mark.parametrize("text", ["oci://", "oci:///x", "oci://h:0/x", "oci://h:99999/x", "oci://h/UPPER",
                                  "oci://h/a//b", "oci://h/a:", "oci://h/a@sha256:12", "http://h/a", "oci://h:tag",
                                  "oci://h/a b", "oci://h/../a"])  # fmt: skip
def test_a_target_that_no_registry_takes_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        OciReference.parse(text)


def test_a_host_alone_is_a_target_without_repository() -> None:
    assert OciReference.parse("oci://127.0.0.1:5000") == OciReference("127.0.0.1:5000")
    assert OciReference.parse("oci://[::1]:5000/a").host == "[::1]:5000"


def test_the_repository_is_the_lower_case_of_the_id_or_must_be_given() -> None:
    assert HubReference("Org/Name-1.0", COMMIT).default_repository() == "models/org/name-1.0"
    with pytest.raises(NameRequired, match="oci://HOST/"):
        HubReference("org/name._x", COMMIT).default_repository()


def test_git_and_lfs_ids_are_those_of_git() -> None:
    # `printf 'hello\n' | git hash-object --stdin`
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    pointer = lfs_pointer("0" * 64, 12345)
    assert (
        pointer == b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    )


@given(st.text(max_size=40))
def test_a_safe_name_stays_inside_and_is_visible(path: str) -> None:
    if defect_of(path) is None:
        assert not path.startswith("/") and "\\" not in path
        assert all(part not in ("", ".", "..") for part in path.split("/"))
        assert path.isprintable() or path >= "\u00a0"
        require_not_hostile(path)


UNSAFE = (
    "a/../b", "/etc/passwd", "..", "a\\b", "a\x00b", "a\nb", "a\u202eb", "a//b", "./a", "con", "aux.json",
    "COM1.txt", "a/nul", "lpt\u00b9",
    "x" * 256, "\u00e9" * 128, "a" * 150 + "/" + "b" * 150, "a.", " a", "a ",

    "", ".complete", "x/.complete", ".sovereign-1.partial", "a:b", "a\ud800",
)  # fmt: skip
TWINS = (
    ("A.json", "a.json"), ("\u00e9.json", "e\u0301.json"), ("a/b", "A/B"), ("stra\u00dfe", "STRASSE"),
    ("a", "a/b"), ("A", "a/b"), ("\ufb01", "fi"),
)  # fmt: skip


@pytest.mark.parametrize("path", UNSAFE)
def test_an_unsafe_name_is_refused(path: str) -> None:
    with pytest.raises(UnsafeFileName):
        require_safe_set([path])


@pytest.mark.parametrize("pair", TWINS)
def test_two_names_of_one_file_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UnsafeFileName):
        require_safe_set(pair)


@pytest.mark.parametrize(
    "path", ["model-00001-of-00002.safetensors", "original/params.json", "a b.json", ".x", "日本語.json"]
)
def test_an_ordinary_name_passes(path: str) -> None:
    require_safe_set([path, "other"])


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"x":{"a":1,"a":1}}', "NaN", "[Infinity]", "\ufeff{}", "[" * 100_000, "", "{} {}"],
)
def test_json_with_two_readings_is_refused(text: str) -> None:
    with pytest.raises(strict_json.NotStrict):
        strict_json.loads(text.encode())


def test_a_key_that_stands_twice_is_found_at_once_among_thousands() -> None:
    names = [f"k{at}" for at in range(50_000)]
    text = "{" + ",".join(f'"{name}":0' for name in (*names, names[-1])) + "}"
    begun = time.process_time()
    with pytest.raises(strict_json.NotStrict, match="the key 'k49999' occurs twice in one object"):
        strict_json.loads(text.encode())
    assert time.process_time() - begun < 5, "not once more for each key"


def lists_and_objects(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.recursive(scalars, lists_and_objects, max_leaves=5))
def test_json_with_one_reading_is_read(value: object) -> None:
    assert strict_json.loads(json.dumps(value).encode()) == value


def test_every_error_has_its_own_reason_and_a_known_exit_code() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SovereignError)
    ]
    named = [kind for kind in kinds if "reason" in vars(kind)]
    assert len({kind.reason for kind in named}) == len(named)
    for kind in named:
        assert kind.__name__ == kind.reason or kind is SovereignError
        assert kind.exit_code in (errors.EXIT_FAILED, errors.EXIT_REFUSED)
        assert kind.exit_code != errors.EXIT_REFUSED or not kind.retryable
