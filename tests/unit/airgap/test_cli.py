# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, the result file in every case, progress for the operator, a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dev.hub import HubServer
from sovereign_airgap.cli import RESULT_BYTES, run
from sovereign_airgap.progress import Progress, served, shown
from sovereign_airgap.pull import PullOptions
from sovereign_airgap.reference import HubReference, OciReference
from tests.unit.airgap.registry_double import RegistryDouble, _Handler, status
from tests.unit.airgap.shelf import Shelf

QUICK = ["--plain-http", "--attempts", "2", "--longest-pause", "0.01", "--stall-seconds", "2"]


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


def result_of(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    assert len(content) <= RESULT_BYTES
    document: dict[str, object] = json.loads(content)
    return document


def a_mirror(source: HubReference, registry: RegistryDouble, hub: HubServer, result_file: Path) -> list[str]:
    return ["mirror", str(source), f"oci://{registry.host}", "--endpoint", hub.endpoint, *QUICK,
            "--result-file", str(result_file), "--progress", "json"]  # fmt: skip


def test_a_path_that_looks_like_markup_is_shown_as_it_is(
    registry: RegistryDouble, pull_options: PullOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Shelf(registry, pull_options, tmp_path).put({"config.json": b"{}", "a[/b].json": b"{}"})
    assert run(["inspect", str(found), *QUICK]) == 0
    assert "a[/b].json" in capsys.readouterr().out


def test_a_model_goes_in_is_inspected_and_comes_out(
    source: HubReference,
    registry: RegistryDouble,
    hub: HubServer,
    result_file: Path,
    tmp_path: Path,
    files: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(a_mirror(source, registry, hub, result_file)) == 0
    result = result_of(result_file)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == result
    assert json.loads(printed.err.splitlines()[-3])["phase"] == "done"
    assert "pytorch_model.bin may be a pickle" in printed.err
    assert result["reason"] == "Mirrored" and result["files"] == 8 and result["revision"] == source.revision
    reference = str(result["reference"])
    assert OciReference.parse(reference).repository == "models/org/tiny-moe"

    assert run(["inspect", reference, "--json", *QUICK]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert (inspected["digest"], inspected["facts"]["experts"]) == (result["digest"], 2)
    assert run(["inspect", f"{reference.partition('@')[0]}:{source.revision}", *QUICK]) == 0
    assert "MixtralForCausalLM" in capsys.readouterr().out

    assert run(["pull", reference, str(tmp_path / "out"), *QUICK, "--result-file", str(result_file)]) == 0
    assert result_of(result_file)["reason"] == "Pulled"
    assert (tmp_path / "out/config.json").read_bytes() == files["config.json"]


def test_facts_of_another_model_are_refused(
    source: HubReference,
    registry: RegistryDouble,
    hub: HubServer,
    result_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(a_mirror(source, registry, hub, result_file)) == 0
    for digest, content in list(registry.blobs.items()):
        if b'"extractor"' in content:
            forged = content.replace(b'"layers":2', b'"layers":3')
            registry.blobs[digest] = forged
    assert run(["inspect", str(result_of(result_file)["reference"]), *QUICK]) == 3
    assert "RegistryBlobCorrupt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["mirror", "hf://org/name@main", "oci://h"],
        ["mirror", "hf://org/name@" + "a" * 40, "oci://h/UPPER"],
        ["pull", "oci://h/a:tag", "out"],
        ["inspect", "oci://h/a"],
        ["export"],
        ["pull"],
        ["mirror", "hf://org/name@" + "a" * 40, "oci://h", "--ca", "/nonexistent"],
    ],
)
def test_a_wrong_command_line_is_usage(arguments: list[str], result_file: Path) -> None:
    assert run([*arguments, f"--result-file={result_file}"]) == 2
    assert result_of(result_file)["reason"] == "Usage"


def test_an_outage_is_failed_and_a_refusal_is_refused(
    source: HubReference,
    registry: RegistryDouble,
    hub: HubServer,
    result_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.next("POST uploads", *[status(500)] * 30)
    assert run(a_mirror(source, registry, hub, result_file)) == 1
    assert result_of(result_file)["reason"] == "RegistryUnavailable"
    registry._faults.clear()
    registry.manifests[source.revision] = (b"{}", "x")
    assert run(a_mirror(source, registry, hub, result_file)) == 3
    assert result_of(result_file)["reason"] == "TagConflict"
    assert "Traceback" not in capsys.readouterr().err


def test_a_defect_of_ours_still_leaves_a_result(
    source: HubReference,
    registry: RegistryDouble,
    hub: HubServer,
    result_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("sovereign_airgap.mirror.mirror", broken)
    assert run(a_mirror(source, registry, hub, result_file)) == 1
    result = result_of(result_file)
    assert result["reason"] == "InternalError" and "secret" not in str(result)


def test_sigterm_ends_the_run_and_cancels_the_uploads(
    source: HubReference, registry: RegistryDouble, hub: HubServer, result_file: Path
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(handler: _Handler) -> bool:
        inside.set()
        leave.wait(30)
        return False

    registry.next("PATCH uploads", wait)
    arguments = a_mirror(source, registry, hub, result_file)
    environment = {**os.environ, "SSL_CERT_FILE": "/nonexistent.pem"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sovereign_airgap.cli", *arguments, "--stall-seconds", "60"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert inside.wait(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    finally:
        leave.set()
        process.kill()
        process.wait()
    assert result_of(result_file)["reason"] == "Interrupted"
    assert "DELETE uploads" in registry.seen
    assert registry.tags == {}


def test_progress_is_served_while_the_work_lasts() -> None:
    progress = Progress()
    progress.expect(2, 100)
    progress.moved(40)
    with served(progress, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
            now = json.load(answer)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=5)
        caught.value.close()
        with served(progress, port) as none:
            assert none == 0, "a taken port is no reason to fail"
    assert now == {
        "phase": "starting",
        "bytesDone": 40,
        "bytesTotal": 100,
        "filesDone": 0,
        "filesTotal": 2,
        "file": "",
    }


@pytest.mark.parametrize("how", ["auto", "json", "none"])
def test_what_is_shown_ends_with_the_last_state(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with shown(progress, how):
        progress.enter("done")
    shown_text = capsys.readouterr().err
    assert ('"phase":"done"' in shown_text) is (how != "none")
