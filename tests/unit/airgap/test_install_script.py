# SPDX-License-Identifier: Apache-2.0
"""`airgap/install`: the standard library alone judges signatures as the command does, and makes the venv."""

from __future__ import annotations

import ensurepip
import hashlib
import importlib.util
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_airgap.bundle.signatures import sign
from sovereign_airgap.bundle.split import split
from sovereign_airgap.signing.keys import PrivateKey
from tests.unit.airgap.bundles import Draft, a_bundle
from tests.unit.airgap.signers import ANNA, BERT, CARA, WHEN

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[3] / "airgap/install"
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED_ORDER = 2**252 + 27742317777372353535851937790883648493


def _load() -> ModuleType:
    loader = SourceFileLoader("airgap_install", str(SCRIPT))
    spec = importlib.util.spec_from_loader("airgap_install", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no airgap/__pycache__ for a script
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


script = _load()
Install = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def public(folder: Path, key: PrivateKey) -> Path:
    path = folder / f"{key.key_id[:6]}.pub"
    path.write_bytes(key.public.pem())
    return path


def verifies(key: PrivateKey, message: bytes, signature: bytes, folder: Path) -> bool:
    der = script.read_key(public(folder, key))[1]
    if der.startswith(script.ED_PREFIX):
        return bool(script.ed25519(der[12:], message, signature))
    return bool(script.ecdsa_p256(der[27:], message, signature))


# --- the two algorithms against the library


@settings(max_examples=15, deadline=None)
@given(message=st.binary(max_size=80), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_both_algorithms_agree_with_the_library(
    message: bytes, at: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    for key in (ANNA, CARA):
        good = key.sign(message)
        bad = bytearray(good)
        bad[at % len(bad)] ^= 1 << bit
        assert verifies(key, message, good, folder)
        assert not verifies(key, message + b"x", good, folder)
        assert verifies(key, message, bytes(bad), folder) == key.public.verify(message, bytes(bad))


def test_signatures_outside_the_group_are_refused(tmp_path: Path) -> None:
    good = ANNA.sign(b"m")
    larger = good[:32] + (int.from_bytes(good[32:], "little") + ED_ORDER).to_bytes(32, "little")
    identity = (1).to_bytes(32, "little") + bytes(32)
    for forged in (larger, identity, good[:63], good + b"\0", b"", bytes(64)):
        assert not verifies(ANNA, b"m", forged, tmp_path)
        assert not ANNA.public.verify(b"m", forged)
    r, s = decode_dss_signature(CARA.sign(b"m"))
    der = encode_dss_signature(r, s)
    pairs = ((0, s), (r, 0), (r + ORDER, s), (r, s + ORDER), (ORDER, s), (r, ORDER))
    padded = (
        b"\x30" + bytes([len(der) - 1]) + der[2:4].replace(der[3:4], bytes([der[3] + 1])) + b"\0" + der[4:]
    )
    for forged in (
        *(encode_dss_signature(*pair) for pair in pairs),
        der[:-1],
        der + b"\0",
        padded,
        b"\x30\0",
    ):
        assert not verifies(CARA, b"m", forged, tmp_path)
        assert not CARA.public.verify(b"m", forged)


@pytest.mark.parametrize("key", [ANNA, CARA])
def test_keys_have_the_ids_that_the_command_gives_them(tmp_path: Path, key: PrivateKey) -> None:
    assert script.read_key(public(tmp_path, key))[0] == key.key_id


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", ANNA.pem()]
)
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        script.read_key(tmp_path / "key")
    assert ended.value.code == 3


# --- the signature of a bundle


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    bundle = a_bundle(tmp_path / "bundle")
    for key in (ANNA, CARA):
        sign(bundle, key, WHEN)
    return bundle


def in_parts(bundle: Path) -> Path:
    split(bundle, bundle.with_name("parts"), 4096)
    return bundle.with_name("parts")


@pytest.mark.parametrize("form", [lambda bundle: bundle, in_parts], ids=["directory", "parts"])
def test_a_signed_bundle_passes_in_both_forms(
    signed: Path, tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    keys = ["--key", public(tmp_path, ANNA), "--key", public(tmp_path, CARA), "--threshold", "2"]
    done = run(form(signed), *keys, "--step", "signature")
    assert done.returncode == 0, done.stderr
    assert ANNA.key_id[:12] in done.stdout
    assert CARA.key_id[:12] in done.stdout


def test_too_few_signatures_are_refused_before_anything_is_made(signed: Path, tmp_path: Path) -> None:
    keys = ["--key", public(tmp_path, ANNA), "--key", public(tmp_path, BERT)]
    work = tmp_path / "work"
    done = run(signed, *keys, "--threshold", "2", "--work", work)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Expected 2 of the keys to have signed" in done.stderr
    assert run(signed, *keys, "--threshold", "3").returncode == 3
    assert not work.exists()


def test_a_changed_index_or_envelope_is_refused(signed: Path, tmp_path: Path) -> None:
    arguments = ["--key", public(tmp_path, ANNA), "--step", "signature"]
    index, envelope = signed / "index.json", signed / f"signatures/{ANNA.key_id}.dsse.json"
    before = index.read_bytes()
    index.write_bytes(before.replace(b'"site"', b'"sitf"'))
    assert "over another index.json" in run(signed, *arguments).stderr
    index.write_bytes(before)
    document = json.loads(envelope.read_bytes())
    for name, value in (
        ("payloadType", "text/plain"),
        ("payload", "e30="),
        ("signatures", []),
        ("payload", 7),
    ):
        envelope.write_text(json.dumps({**document, name: value}))
        done = run(signed, *arguments)
        assert done.returncode == 3
        assert "is wrong" in done.stderr
    envelope.write_text("[" * 60_000)
    done = run(signed, *arguments)
    assert done.returncode == 3
    assert "nested too deeply" in done.stderr
    envelope.write_bytes((signed / f"signatures/{CARA.key_id}.dsse.json").read_bytes())
    assert run(signed, *arguments).returncode == 3


def test_a_missing_or_cut_part_is_named(signed: Path, tmp_path: Path) -> None:
    parts = in_parts(signed)
    arguments = ["--key", public(tmp_path, ANNA), "--step", "signature"]
    second = parts / "site-1.part-00002"
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    assert second.name in run(parts, *arguments).stderr
    second.unlink()
    done = run(parts, *arguments)
    assert done.returncode == 3
    assert second.name in done.stderr


@pytest.mark.parametrize("listed", ["[" * 60_000, '{"parts": [{"name": "x", "size": 1e999, "sha256": ""}]}'])
def test_a_list_of_parts_that_is_none_is_refused(signed: Path, tmp_path: Path, listed: str) -> None:
    parts = in_parts(signed)
    (parts / "site-1.parts.json").write_text(listed)
    done = run(parts, "--key", public(tmp_path, ANNA), "--step", "signature")
    assert done.returncode == 3
    assert "cannot be read" in done.stderr


def test_headers_without_end_in_a_part_are_refused(signed: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 512
    content = (header.tobuf(tarfile.USTAR_FORMAT) + bytes(512)) * 5_000
    part = {"name": "x", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "x.parts.json").write_text(json.dumps({"parts": [part]}))
    done = run(tmp_path / "x.parts.json", "--key", public(tmp_path, ANNA), "--step", "signature")
    assert done.returncode == 3
    assert "cannot be read" in done.stderr


def test_a_damaged_part_is_named(signed: Path, tmp_path: Path) -> None:
    parts = in_parts(signed)
    first = parts / "site-1.part-00001"
    content = first.read_bytes()
    first.write_bytes(b"?" + content[1:])  # the header of the first file
    done = run(parts, "--key", public(tmp_path, ANNA), "--step", "signature")
    assert done.returncode == 3
    assert f"copy {first.name} again, it is damaged" in done.stderr


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--key", public(tmp_path, ANNA))
    assert done.returncode == 3
    assert "Expected one bundle" in done.stderr


# --- the environment


def a_wheel(folder: Path) -> Path:
    """A wheel that calls itself ours; its command says what it was told."""
    path = folder / "sovereign_models-0.1.0-py3-none-any.whl"
    info = "sovereign_models-0.1.0.dist-info"
    files = {
        "sovereign_airgap/__init__.py": "",
        "sovereign_airgap/cli.py": "import sys\nprint(sys.prefix, *sys.argv[1:])\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sovereign-models\nVersion: 0.1.0\n"
        "Provides-Extra: airgap\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    listed = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": listed}.items():
            archive.writestr(name, text)
    return path


def pip_wheel() -> Path:
    bundled = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    if not bundled:
        pytest.skip("this Python brings no pip wheel")
    return bundled[0]


def a_platform(folder: Path) -> Path:
    draft = Draft(folder / "platform")
    for wheel in (a_wheel(folder), pip_wheel()):
        draft.file(f"wheels/{wheel.name}", wheel.read_bytes())
    sign(draft.finish(), ANNA, WHEN)
    return draft.directory


def test_the_environment_is_made_of_the_bundles_wheels_and_kept(tmp_path: Path) -> None:
    bundle, key, work = in_parts(a_platform(tmp_path)), public(tmp_path, ANNA), tmp_path / "work"
    first = run(bundle, "--key", key, "--work", work, "--ca", "ca.pem")
    assert first.returncode == 0, first.stderr
    told = first.stdout.splitlines()[-1]
    assert told == f"{work / 'venv'} install {bundle} --work {work} --key {key} --threshold 1 --ca ca.pem"
    before = (work / "venv/made-of.json").stat().st_mtime_ns
    again = run(bundle, "--key", key, "--work", work, "--step", "venv", "--step", "load")
    assert "venv is there" in again.stdout
    assert again.stdout.endswith("--threshold 1 --step load\n")
    assert (work / "venv/made-of.json").stat().st_mtime_ns == before
    dry = run(bundle, "--key", key, "--work", tmp_path / "nowhere", "--dry-run")
    assert dry.stdout.endswith("--dry-run\n")
    assert not (tmp_path / "nowhere").exists()


def test_a_wheel_with_other_bytes_is_not_installed(tmp_path: Path) -> None:
    bundle, work = a_platform(tmp_path), tmp_path / "work"
    wheel = json.loads((bundle / "index.json").read_bytes())["manifests"]
    digest = next(root["digest"] for root in wheel if "sovereign_models" in json.dumps(root))
    blob = bundle / "blobs/sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    done = run(bundle, "--key", public(tmp_path, ANNA), "--work", work)
    assert done.returncode == 3
    assert "to be as signed" in done.stderr
    assert not (work / "venv").exists()


def test_a_bundle_without_wheels_is_refused(signed: Path, tmp_path: Path) -> None:
    done = run(signed, "--key", public(tmp_path, ANNA), "--work", tmp_path / "work")
    assert done.returncode == 3
    assert "Expected a wheel pip-*" in done.stderr
