# SPDX-License-Identifier: Apache-2.0
"""Signatures where they live: in a bundle, beside an artifact in a registry, and on the command line."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sovereign_airgap.access import Access
from sovereign_airgap.artifact_signatures import artifact_signed_by, sign_artifact
from sovereign_airgap.bundle import signatures
from sovereign_airgap.bundle.index import Index
from sovereign_airgap.bundle.layout import Directory, signature_path
from sovereign_airgap.cli import run
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import (
    ArtifactNotFound,
    BundleDefective,
    KeyUnusable,
    NotSigned,
    SignatureInvalid,
)
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, canonical_json, fallback_tag
from sovereign_airgap.pace import Pace
from sovereign_airgap.reference import OciReference
from sovereign_airgap.registry import Registry
from sovereign_airgap.signing.dsse import ENVELOPE_BYTES
from sovereign_airgap.signing.keys import PrivateKey, PublicKey
from sovereign_airgap.signing.referrer import KEY_ID, SIGNATURE_TYPE
from tests.unit.airgap.bundles import a_bundle
from tests.unit.airgap.conftest import QUICK
from tests.unit.airgap.registry_double import RegistryDouble
from tests.unit.airgap.signers import ANNA, BERT, CARA, FOREIGN, WHEN, a_release

QUICKLY = ["--plain-http", "--attempts", "2", "--longest-pause", "0.01", "--stall-seconds", "2"]

# -- a bundle ---------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return a_directory(tmp_path / "bundle", Index("site", 3))


def a_directory(place: Path, index: Index) -> Path:
    place.mkdir()
    (place / "index.json").write_bytes(index.encode())
    return place


def signed_by(directory: Path, *keys: PrivateKey, threshold: int = 1) -> tuple[str, ...]:
    content = (directory / "index.json").read_bytes()
    return signatures.signed_by(Directory(directory), content, [key.public for key in keys], threshold)


def test_a_bundle_is_signed_by_several_keys_one_after_the_other(directory: Path) -> None:
    assert signatures.sign(directory, ANNA, WHEN) == directory / signature_path(ANNA.key_id)
    signatures.sign(directory, CARA, WHEN)
    assert signed_by(directory, ANNA) == (ANNA.key_id,)
    assert signed_by(directory, ANNA, CARA, threshold=2) == tuple(sorted([ANNA.key_id, CARA.key_id]))
    with pytest.raises(NotSigned):
        signed_by(directory, ANNA, BERT, threshold=2)
    with pytest.raises(NotSigned):
        signed_by(directory, FOREIGN)


def test_signing_again_replaces_the_own_signature_only(directory: Path) -> None:
    signatures.sign(directory, ANNA, WHEN)
    signatures.sign(directory, BERT, WHEN)
    before = (directory / signature_path(ANNA.key_id)).read_bytes()
    signatures.sign(directory, ANNA, WHEN + timedelta(days=1))
    assert (directory / signature_path(ANNA.key_id)).read_bytes() != before
    assert len(signed_by(directory, ANNA, BERT, threshold=2)) == 2
    assert len(list((directory / "signatures").iterdir())) == 2


def test_a_changed_index_is_no_longer_signed(directory: Path) -> None:
    signatures.sign(directory, ANNA, WHEN)
    (directory / "index.json").write_bytes(Index("site", 4).encode())
    with pytest.raises(SignatureInvalid):
        signed_by(directory, ANNA)


def test_the_signature_of_another_bundle_is_invalid_here(directory: Path, tmp_path: Path) -> None:
    other = a_directory(tmp_path / "other", Index("other", 3))
    place = signatures.sign(other, ANNA, WHEN)
    (directory / "signatures").mkdir()
    (directory / signature_path(ANNA.key_id)).write_bytes(place.read_bytes())
    with pytest.raises(SignatureInvalid, match="not over"):
        signed_by(directory, ANNA)


def test_the_release_of_an_artifact_signs_no_bundle(directory: Path) -> None:
    (directory / "signatures").mkdir()
    index = Digest.of((directory / "index.json").read_bytes())
    (directory / signature_path(ANNA.key_id)).write_bytes(a_release(index, ANNA))
    with pytest.raises(SignatureInvalid, match="release/v1"):
        signed_by(directory, ANNA)


def test_a_stripped_signature_is_missed(directory: Path) -> None:
    signatures.sign(directory, ANNA, WHEN)
    signatures.sign(directory, BERT, WHEN).unlink()
    with pytest.raises(NotSigned):
        signed_by(directory, ANNA, BERT, threshold=2)


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"x" * (ENVELOPE_BYTES + 1), a_release(Digest.of(b""), FOREIGN)]
)
def test_a_bundle_with_a_wrong_signature_is_refused_even_where_enough_hold(
    directory: Path, content: bytes
) -> None:
    signatures.sign(directory, ANNA, WHEN)
    (directory / signature_path(BERT.key_id)).write_bytes(content)
    with pytest.raises(SignatureInvalid):
        signed_by(directory, ANNA, BERT, threshold=1)


def test_a_copy_of_one_signature_under_another_name_is_refused(directory: Path) -> None:
    place = signatures.sign(directory, ANNA, WHEN)
    place.with_name(f"{BERT.key_id}.dsse.json").write_bytes(place.read_bytes())
    with pytest.raises(SignatureInvalid, match="named for one key"):
        signed_by(directory, ANNA, BERT, threshold=1)


def test_a_heap_of_signatures_is_not_read_to_its_end(directory: Path) -> None:
    signatures.sign(directory, ANNA, WHEN)
    for number in range(signatures.MAX_FILES):
        (directory / signature_path(f"{number:064x}")).write_bytes(b"{}")
    with pytest.raises(SignatureInvalid):
        signed_by(directory, ANNA)


def test_a_delta_is_signed_with_its_base(tmp_path: Path) -> None:
    base = Digest.of(b"base")
    directory = a_directory(tmp_path / "delta", Index("site", 4, base=base))
    place = signatures.sign(directory, ANNA, WHEN)
    assert signed_by(directory, ANNA)
    payload = json.loads(base64.b64decode(json.loads(place.read_bytes())["payload"]))
    assert payload["predicate"] == {
        "name": "site", "version": 4, "base": str(base), "created": "2026-01-31T12:00:00Z"
    }  # fmt: skip


def test_what_is_no_bundle_is_not_signed(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"{}")
    with pytest.raises(BundleDefective):
        signatures.sign(tmp_path, ANNA, WHEN)
    assert not (tmp_path / "signatures").exists()


def test_a_signature_that_is_a_link_is_not_followed(directory: Path, tmp_path: Path) -> None:
    place = signatures.sign(directory, ANNA, WHEN)
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    with pytest.raises(NotSigned):
        signed_by(directory, ANNA)


# -- an artifact ------------------------------------------------------------------------------------------

MANIFEST = canonical_json(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/x", "digest": str(Digest.of(b"{}")), "size": 2},
        "layers": [],
    }
)
SUBJECT = Digest.of(MANIFEST)


@pytest.fixture
def opened(registry: RegistryDouble) -> Iterator[Registry]:
    registry.manifests[str(SUBJECT)] = (MANIFEST, MANIFEST_TYPE)
    reference = OciReference(registry.host, "models/org/x", digest=SUBJECT)
    with Pace(QUICK) as pace, Access(plain_http=True).registry(reference, pace, push=True) as one:
        yield one


def listed(registry: RegistryDouble) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(registry.manifests[fallback_tag(SUBJECT)][0])["manifests"]
    return found


def public(*keys: PrivateKey) -> list[PublicKey]:
    return [key.public for key in keys]


def test_signatures_by_several_keys_stand_side_by_side(opened: Registry, registry: RegistryDouble) -> None:
    for key in (ANNA, CARA):
        sign_artifact(opened, SUBJECT, key, WHEN)
    assert len(artifact_signed_by(opened, SUBJECT, public(ANNA, CARA), 2)) == 2
    assert [entry["annotations"] for entry in listed(registry)] == [
        {KEY_ID: ANNA.key_id}, {KEY_ID: CARA.key_id}
    ]  # fmt: skip


def test_a_later_signature_replaces_the_earlier_one_of_its_key(
    opened: Registry, registry: RegistryDouble
) -> None:
    sign_artifact(opened, SUBJECT, ANNA, WHEN)
    sign_artifact(opened, SUBJECT, BERT, WHEN)
    last = sign_artifact(opened, SUBJECT, ANNA, WHEN + timedelta(days=1))
    assert [entry["digest"] for entry in listed(registry)].count(str(last)) == 1
    assert len(listed(registry)) == 2
    assert len(artifact_signed_by(opened, SUBJECT, public(ANNA, BERT), 2)) == 2


def test_facts_replace_facts_and_leave_signatures_alone(opened: Registry, registry: RegistryDouble) -> None:
    opened.put_referrer(SUBJECT, b'{"facts":1}', "application/facts")
    sign_artifact(opened, SUBJECT, ANNA, WHEN)
    opened.put_referrer(SUBJECT, b'{"facts":2}', "application/facts")
    assert sorted(str(entry["artifactType"]) for entry in listed(registry)) == [
        "application/facts", SIGNATURE_TYPE
    ]  # fmt: skip
    assert artifact_signed_by(opened, SUBJECT, public(ANNA), 1) == (ANNA.key_id,)


def test_what_is_listed_already_is_not_written_again(opened: Registry, registry: RegistryDouble) -> None:
    sign_artifact(opened, SUBJECT, ANNA, WHEN)
    opened.put_referrer(SUBJECT, b'{"facts":1}', "application/facts")
    before = registry.manifests[fallback_tag(SUBJECT)]
    sign_artifact(opened, SUBJECT, ANNA, WHEN)
    assert registry.manifests[fallback_tag(SUBJECT)] is before


def test_an_artifact_without_signatures_is_not_signed(opened: Registry) -> None:
    with pytest.raises(NotSigned):
        artifact_signed_by(opened, SUBJECT, public(ANNA), 1)


def test_the_signature_of_another_artifact_is_invalid_here(
    opened: Registry, registry: RegistryDouble
) -> None:
    other = MANIFEST + b" "
    registry.manifests[str(Digest.of(other))] = (other, MANIFEST_TYPE)
    sign_artifact(opened, Digest.of(other), ANNA, WHEN)
    registry.manifests[fallback_tag(SUBJECT)] = registry.manifests[fallback_tag(Digest.of(other))]
    with pytest.raises(SignatureInvalid, match="subject"):
        artifact_signed_by(opened, SUBJECT, public(ANNA), 1)


def damage_blobs(registry: RegistryDouble) -> None:
    for digest, content in registry.blobs.items():
        registry.blobs[digest] = content[:-1] + b"!"


def drop_blobs(registry: RegistryDouble) -> None:
    registry.blobs.clear()


def drop_manifest(registry: RegistryDouble) -> None:
    del registry.manifests[str(listed(registry)[0]["digest"])]


@pytest.mark.parametrize("damage", [damage_blobs, drop_blobs, drop_manifest])
def test_a_signature_that_went_bad_in_the_registry_is_named(
    opened: Registry, registry: RegistryDouble, damage: Callable[[RegistryDouble], None]
) -> None:
    sign_artifact(opened, SUBJECT, ANNA, WHEN)
    damage(registry)
    with pytest.raises(SignatureInvalid):
        artifact_signed_by(opened, SUBJECT, public(ANNA), 1)


def test_what_is_not_there_is_neither_signed_nor_verified(opened: Registry, registry: RegistryDouble) -> None:
    registry.manifests.clear()
    with pytest.raises(ArtifactNotFound):
        sign_artifact(opened, SUBJECT, ANNA, WHEN)
    with pytest.raises(ArtifactNotFound):
        artifact_signed_by(opened, SUBJECT, public(ANNA), 1)
    assert not registry.blobs


def test_an_index_is_signed_as_one(opened: Registry, registry: RegistryDouble) -> None:
    content = canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []})
    digest = Digest.of(content)
    registry.manifests[str(digest)] = (content, INDEX_TYPE)
    attached = sign_artifact(opened, digest, ANNA, WHEN)
    named = json.loads(registry.manifests[str(attached)][0])["subject"]
    assert named == {"mediaType": INDEX_TYPE, "digest": str(digest), "size": len(content)}


# -- the command line -------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with the key pairs `vendor` and `site`."""
    assert run(["keygen", str(tmp_path / "vendor")]) == 0
    assert run(["keygen", str(tmp_path / "site"), "--type", "ecdsa-p256"]) == 0
    capsys.readouterr()
    return tmp_path


def test_a_new_key_is_for_its_owner_only_and_its_public_half_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        assert run(["keygen", str(tmp_path / "my.vendor")]) == 0
    finally:
        os.umask(before)
    private, public_half = tmp_path / "my.vendor.key", tmp_path / "my.vendor.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key_id = capsys.readouterr().out.strip()
    assert PrivateKey.load(private).key_id == PublicKey.load(public_half).key_id == key_id


@pytest.mark.parametrize("ending", [".key", ".pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, ending: str) -> None:
    there = tmp_path / f"vendor{ending}"
    there.write_text("mine")
    assert run(["keygen", str(tmp_path / "vendor")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [there.name]
    assert there.read_text() == "mine"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "vendor.key").symlink_to(tmp_path / "elsewhere")
    assert run(["keygen", str(tmp_path / "vendor")]) == 2
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keygen", str(tmp_path / "none" / "vendor")]) == 1
    assert "DiskFailed" in capsys.readouterr().err


def test_a_passphrase_locks_the_private_key(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("open sesame\n")
    key = str(tmp_path / "locked.key")
    assert run(["keygen", str(tmp_path / "locked"), "--passphrase-file", str(secret)]) == 0
    assert b"ENCRYPTED" in Path(key).read_bytes()
    assert run(["sign", str(directory), "--key", key]) == 3
    assert "nobody is there to ask" in capsys.readouterr().err
    assert run(["sign", str(directory), "--key", key, "--passphrase-file", str(secret)]) == 0
    secret.write_text("wrong\n")
    assert run(["sign", str(directory), "--key", key, "--passphrase-file", str(secret)]) == 3
    printed = capsys.readouterr()
    assert "open sesame" not in printed.out + printed.err


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"x" * 2000])
def test_a_passphrase_file_has_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "passphrase").write_bytes(content)
    code = run(["keygen", str(tmp_path / "k"), "--passphrase-file", str(tmp_path / "passphrase")])
    assert (code, (tmp_path / "k.key").exists()) == (3, False)


def test_a_passphrase_is_asked_for_at_a_terminal(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[dict[str, object]] = []

    def answer(question: str, **how: object) -> str:
        asked.append(how)
        return "open sesame"

    monkeypatch.setattr("click.prompt", answer)
    assert run(["keygen", str(tmp_path / "k"), "--passphrase"]) == 0
    assert run(["sign", str(directory), "--key", str(tmp_path / "k.key")]) == 0
    assert [(how["hide_input"], how["confirmation_prompt"]) for how in asked] == [(True, True), (True, False)]


def test_no_answer_for_a_passphrase_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_answer(_: str) -> str:
        raise EOFError  # as Ctrl-D makes it

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.hidden_prompt_func", no_answer)
    assert run(["keygen", str(tmp_path / "k"), "--passphrase"]) == 3
    assert "--passphrase-file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_is_no_name_of_a_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(["keygen", name]) == 2
    assert not list((tmp_path / "here").iterdir())


def test_a_bundle_is_signed_from_the_command_line(
    keys: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vendor", "site"):
        assert run(["sign", str(directory), "--key", str(keys / f"{name}.key")]) == 0
        assert Path(capsys.readouterr().out.strip()).is_file()
    public_keys = [PublicKey.load(keys / f"{name}.pub") for name in ("vendor", "site")]
    content = (directory / "index.json").read_bytes()
    assert len(signatures.signed_by(Directory(directory), content, public_keys, 2)) == 2


def test_a_bundle_is_verified_whole_and_by_its_signatures(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = a_bundle(tmp_path / "whole")
    trusted = ["--key", str(keys / "vendor.pub")]
    assert run(["verify", str(directory), *trusted]) == 3
    assert "NotSigned" in capsys.readouterr().err
    assert run(["sign", str(directory), "--key", str(keys / "vendor.key")]) == 0
    assert run(["verify", str(directory), *trusted]) == 0
    assert f"signed by {PublicKey.load(keys / 'vendor.pub').key_id}" in capsys.readouterr().out
    assert run(["verify", str(directory), *trusted, "--threshold", "2"]) == 3
    blob = next((directory / "blobs" / "sha256").iterdir())
    blob.write_bytes(blob.read_bytes() + b" ")
    capsys.readouterr()
    assert run(["verify", str(directory), *trusted]) == 3
    assert blob.name in capsys.readouterr().err


def test_an_artifact_is_signed_and_verified_from_the_command_line(
    keys: Path, opened: Registry, registry: RegistryDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"oci://{registry.host}/models/org/x@{SUBJECT}"
    both = ["--key", str(keys / "vendor.pub"), "--key", str(keys / "site.pub")]
    assert run(["verify", place, *both, *QUICKLY]) == 3
    assert "NotSigned" in capsys.readouterr().err
    assert run(["sign", place, "--key", str(keys / "vendor.key"), *QUICKLY]) == 0
    assert capsys.readouterr().out.startswith(f"oci://{registry.host}/models/org/x@sha256:")
    assert run(["verify", place, *both, "--threshold", "2", *QUICKLY]) == 3
    result = keys / "result.json"
    assert run(["sign", place, "--key", str(keys / "site.key"), *QUICKLY, "--result-file", str(result)]) == 0
    assert json.loads(result.read_bytes())["keyId"] == PublicKey.load(keys / "site.pub").key_id
    capsys.readouterr()
    assert run(["verify", place, *both, "--threshold", "2", "--json", *QUICKLY]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["digest"], len(said["signedBy"])) == (str(SUBJECT), 2)


def test_verifying_only_asks(keys: Path, opened: Registry, registry: RegistryDouble) -> None:
    place = f"oci://{registry.host}/models/org/x@{SUBJECT}"
    registry.seen.clear()
    run(["verify", place, "--key", str(keys / "site.pub"), *QUICKLY])
    assert {request.split()[0] for request in registry.seen} == {"GET"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["sign", "oci://h/models/x:tag", "--key", "KEY"],
        ["sign", "oci://h/models/x:tag@sha256:" + "0" * 64, "--key", "KEY"],
        ["sign", "oci://h/UPPER@sha256:" + "0" * 64, "--key", "KEY"],
        ["sign", "somewhere"],
        ["verify", "oci://h/models/x@sha256:" + "0" * 64],
        ["verify", "oci://h/models/x:tag", "--key", "PUB"],
        ["verify", "oci://h/models/x@sha256:" + "0" * 64, "--key", "PUB", "--threshold", "0"],
        ["keygen", "x", "--type", "rsa"],
        ["keygen", "x", "--passphrase", "--passphrase-file", "PUB"],
    ],
)
def test_a_wrong_command_line_is_usage(arguments: list[str], keys: Path) -> None:
    replaced = {"KEY": str(keys / "vendor.key"), "PUB": str(keys / "vendor.pub")}
    assert run([replaced.get(argument, argument) for argument in arguments]) == 2


def test_a_public_key_signs_nothing_and_a_private_one_verifies_nothing(keys: Path, directory: Path) -> None:
    assert run(["sign", str(directory), "--key", str(keys / "vendor.pub")]) == 3
    place = "oci://127.0.0.1:1/models/org/x@sha256:" + "0" * 64
    assert run(["verify", place, "--key", str(keys / "vendor.key"), *QUICKLY]) == 3


def test_parts_are_not_signed(keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site-1.parts.json").write_text("{}")
    assert run(["sign", str(tmp_path / "site-1.parts.json"), "--key", str(keys / "vendor.key")]) == 3
    assert "before you split" in capsys.readouterr().err


def test_no_keys_verify_nothing(directory: Path) -> None:
    signatures.sign(directory, ANNA, WHEN)
    with pytest.raises(KeyUnusable):
        signed_by(directory)
