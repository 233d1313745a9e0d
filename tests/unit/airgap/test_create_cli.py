# SPDX-License-Identifier: Apache-2.0
"""`bundle create` as a command: what it prints, its result file, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.verify import verify
from sovereign_airgap.cli import run
from sovereign_airgap.progress import Progress
from sovereign_airgap.signing.keys import PrivateKey, PublicKey
from tests.unit.airgap.creations import Connected, push_image
from tests.unit.airgap.models import REPO, write


@pytest.fixture
def arguments(side: Connected) -> list[str]:
    quick = ["--attempts", "2", "--longest-pause", "0.01", "--stall-seconds", "2", "--progress", "json"]
    return [
        *("bundle", "create", "-o", str(side.out), "--endpoint", side.hub.endpoint, "--plain-http", *quick),
        *("--result-file", str(side.folder / "result.json")),
    ]


def result_of(side: Connected) -> dict[str, object]:
    document: dict[str, object] = json.loads((side.folder / "result.json").read_text())
    return document


def test_options_make_a_bundle_and_say_what_it_is(
    side: Connected, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    push_image(side.registry, "1.2")
    write(side.folder, {"a.txt": b"a"})
    code = run(
        [
            *arguments,
            *("--name", "site", "--model", side.source(), "--image", f"{side.registry.host}/tools/pause:1.2"),
            *("--chart", "charts/sovereign-crds", "--file", f"{side.folder / 'a.txt'}=notes/a.txt"),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    result = result_of(side)
    assert json.loads(printed.out) == result
    found = verify(open_bundle(side.out), [], 1, Progress())
    assert result["reason"] == "Created" and result["digest"] == str(found.index_digest)
    assert (result["blobs"], result["bytes"]) == (found.blobs, found.size)
    assert "left out: models/org/tiny-moe: modeling_tiny.py is code, which is never taken" in printed.err
    assert "not signed" in printed.err
    assert '"phase":"done"' in printed.err


def test_a_spec_a_version_a_key_and_parts(
    side: Connected, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = PrivateKey.generate("ecdsa-p256")
    (tmp_path / "x.key").write_bytes(key.pem(None))
    (tmp_path / "x.pub").write_bytes(key.public.pem())
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: site\nmodels: [{{source: '{side.source()}'}}]\n")
    more = ["--version", "7", "--key", str(tmp_path / "x.key"), "--part-size", "64KiB"]
    assert run([*arguments, str(spec), *more]) == 0, capsys.readouterr().err
    assert (side.out / "site-7.part-00001").stat().st_size == 64 * 1024
    found = verify(open_bundle(side.out), [PublicKey.load(tmp_path / "x.pub")], 1, Progress())
    assert (found.version, found.signed_by) == (7, (key.key_id,))
    assert "not signed" not in capsys.readouterr().err


def test_a_delta_names_its_base_and_counts_on(side: Connected, arguments: list[str]) -> None:
    old = side.create(side.folder / "old", side.spec(models=[{"source": side.source()}]))
    assert run([*arguments, "--name", "site", "--model", side.source(), "--since", str(old.path)]) == 0
    assert (result_of(side)["base"], result_of(side)["version"]) == (str(old.index_digest), 2)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "Give SPEC, or --name"),
        (["--name", "site"], "at least one"),
        (["--model", "hf://o/n@x"], "Give SPEC, or --name"),
        (["spec.yaml", "--name", "x"], "not both"),
        (["--name", "x", "--file", "x", "--platform", "linux/amd64", "--all-platforms"], "not both"),
        (["--name", "x", "--file", "x", "--platform", "linux"], "platform should be as in linux/amd64"),
        (["--name", "x", "--file", "x", "--part-size", "many"], "is no size"),
        (["--name", "x", "--file", "x", "--version", "0"], "--version"),
        (["nowhere.yaml"], "does not exist"),
    ],
)
def test_wrong_usage_is_exit_2(
    side: Connected,
    arguments: list[str],
    more: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(side.folder)
    (side.folder / "spec.yaml").write_text("name: x\n")
    assert run([*arguments, *more]) == 2
    assert told in capsys.readouterr().err
    assert not side.out.exists() and not side.unfinished.exists()


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["--name", "SITE", "--file", "x"], 3, "InvalidSpec"),
        (["--name", "x", "--model", "hf://o/n@main"], 3, "InvalidSpec"),
        (["--name", "x", "--model", f"hf://{REPO}@{'0' * 40}"], 1, "RevisionNotFound"),
        (["--name", "x", "--file", "nowhere"], 1, "DiskFailed"),
        (["--name", "x", "--file", "spec.yaml", "--since", "empty"], 3, "BundleDefective"),
        (["spec.yaml"], 3, "InvalidSpec"),
    ],
)
def test_what_cannot_be_made_is_told_by_its_reason(
    side: Connected,
    arguments: list[str],
    more: list[str],
    code: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(side.folder)
    (side.folder / "spec.yaml").write_text("name: x\n")
    (side.folder / "empty").mkdir()
    assert run([*arguments, *more]) == code
    assert result_of(side)["reason"] == reason
    assert capsys.readouterr().err.count(reason) == 1
    assert not side.out.exists()
