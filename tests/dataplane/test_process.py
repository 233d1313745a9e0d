# SPDX-License-Identifier: Apache-2.0
"""The command as a process: a full disk, a signal, a certificate that nobody vouches for."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dev.hub import HubServer
from dev.registry import LocalRegistry
from tests.dataplane.models import WEIGHTS
from tests.dataplane.site import REPO, Outcome, Site
from tests.dataplane.test_outages import assert_succeeds_now, assert_told_well
from tests.dataplane.test_pull import assert_pulls_now
from tests.unit.faults.proxy import FaultyProxy, Hang

COMMAND = str(Path(sys.executable).parent / "sovereign-airgap")


@dataclasses.dataclass
class Command:
    """One run of `sovereign-airgap` with its result file."""

    process: "subprocess.Popen[str]"
    result: Path

    def ended(self) -> Outcome:
        told, _ = self.process.communicate(timeout=60)
        assert "Traceback" not in told
        assert self.result.exists(), told
        document = json.loads(self.result.read_text())
        assert self.result.stat().st_size <= 3 * 1024
        return Outcome(
            self.process.returncode, document["reason"], document["message"], document.get("digest", "")
        )


def start(folder: Path, *arguments: str, within: Sequence[str] = ()) -> Command:
    result = folder / "termination-log"
    result.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*within, COMMAND, *arguments, "--progress", "none", "--result-file", str(result)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Command(process, result)


def wait_for_a_request(faulty: FaultyProxy, method: str, path: str = "") -> None:
    deadline = time.monotonic() + 30
    while faulty.count(method, path) == 0:
        assert time.monotonic() < deadline, "the request never came"
        time.sleep(0.02)


def small_disk(folder: Path, kibibytes: int) -> list[str]:
    """A prefix that runs a command with a tmpfs of its own at `folder`: nobody else sees the mount."""
    script = f'mount -t tmpfs -o size={kibibytes}k none "$0" && exec "$@"'
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", "--mount", *user, "sh", "-c", script, str(folder)]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a private mount needs root or user namespaces")
    return prefix


def test_a_full_disk_ends_a_pull_and_a_second_try_succeeds(site: Site, tmp_path: Path) -> None:
    digest = site.mirror().digest
    target = tmp_path / "target"
    target.mkdir()

    failed = start(
        tmp_path,
        *("pull", f"{site.target}@{digest}", str(target), "--plain-http"),
        within=small_disk(target, kibibytes=24),
    ).ended()

    assert (failed.reason, failed.code) == ("DiskFull", 1), failed
    assert str(target) in failed.message
    assert_told_well(failed)
    assert_pulls_now(site, digest, target)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_mirror_at_once(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    site.storage.break_(Hang(after=10))
    command = start(tmp_path, "mirror", site.source, site.target, "--plain-http", "--endpoint", site.hub.url)
    wait_for_a_request(site.storage, "GET")

    begun = time.monotonic()
    command.process.send_signal(number)
    failed = command.ended()

    assert (failed.reason, failed.code) == ("Interrupted", 1), failed
    assert time.monotonic() - begun < 10, "it waited for the hub"
    assert_told_well(failed)
    assert site.tags() == []
    assert_succeeds_now(site)


def test_a_signal_ends_a_pull_and_leaves_no_weights(site: Site, tmp_path: Path) -> None:
    digest = site.mirror().digest
    target = tmp_path / "target"
    site.registry.break_(Hang(after=10), method="GET", path="/blobs/")
    command = start(tmp_path, "pull", f"{site.target}@{digest}", str(target), "--plain-http")
    wait_for_a_request(site.registry, "GET", "/blobs/")

    command.process.send_signal(signal.SIGTERM)
    failed = command.ended()

    assert (failed.reason, failed.code) == ("Interrupted", 1), failed
    assert not (target / WEIGHTS).exists()
    assert_pulls_now(site, digest, target)


def test_a_killed_mirror_leaves_nothing_that_the_next_one_minds(site: Site, tmp_path: Path) -> None:
    site.storage.break_(Hang(after=10))
    command = start(tmp_path, "mirror", site.source, site.target, "--plain-http", "--endpoint", site.hub.url)
    wait_for_a_request(site.storage, "GET")

    command.process.kill()
    command.process.communicate(timeout=30)

    assert site.tags() == []
    assert_succeeds_now(site)


def test_wrong_usage_is_exit_2(tmp_path: Path) -> None:
    for arguments in (["mirror"], ["mirror", "hf://acme/tiny@main", "oci://127.0.0.1:9"], ["pull", "x"]):
        process = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
        assert process.returncode == 2, process
        assert "Traceback" not in process.stderr


SELF_SIGNED = [
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
    *("-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    made = (folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [*SELF_SIGNED, "-out", str(made[0]), "-keyout", str(made[1])], check=True, capture_output=True
    )
    return made


def test_an_unknown_certificate_of_the_hub(
    site: Site, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with HubServer(site.hub_folder, tls=certificate) as secure:
        arguments = ("mirror", site.source, site.target, "--plain-http", "--endpoint", secure.endpoint)

        failed = start(tmp_path, *arguments).ended()
        assert (failed.reason, failed.code) == ("CertificateUnknown", 1), failed
        assert "--hub-ca" in failed.message
        assert_told_well(failed)
        assert site.tags() == []

        done = start(tmp_path, *arguments, "--hub-ca", str(certificate[0])).ended()
        assert (done.reason, done.code) == ("Mirrored", 0), done
        assert any(seen.origin == "storage" for seen in secure.requests)


def test_an_unknown_certificate_of_the_registry(
    site: Site, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with LocalRegistry(tmp_path / "secure", tls=certificate) as secure:
        target = f"oci://{secure.host}/{site.repository}"
        arguments = ("mirror", site.source, target, "--endpoint", site.hub.url)

        failed = start(tmp_path, *arguments).ended()
        assert (failed.reason, failed.code) == ("CertificateUnknown", 1), failed
        assert "--ca" in failed.message
        assert_told_well(failed)

        trust = ("--ca", str(certificate[0]))
        done = start(tmp_path, *arguments, *trust).ended()
        assert (done.reason, done.code) == ("Mirrored", 0), done
        pull = ("pull", f"{target}@{done.digest}", str(tmp_path / "pulled"), *trust)
        assert start(tmp_path, *pull).ended().code == 0
        assert (tmp_path / "pulled" / WEIGHTS).read_bytes() == (site.hub_folder / REPO / WEIGHTS).read_bytes()


def test_a_registry_that_restarts_in_the_middle_of_an_upload(site: Site, tmp_path: Path) -> None:
    site.patience = dataclasses.replace(site.patience, stall=1.0, attempts=20, longest_pause=1.0)
    outcomes: list[Outcome] = []
    with LocalRegistry(tmp_path / "own") as own, FaultyProxy(own.url) as front:
        site.registry = front
        front.break_(Hang(after=0), method="PATCH", times=1)
        mirroring = threading.Thread(target=lambda: outcomes.append(site.mirror()))
        mirroring.start()
        wait_for_a_request(front, "PATCH")
        own.stop()
        own.start()
        mirroring.join(60)
    assert [outcome.code for outcome in outcomes] == [0], outcomes
