# SPDX-License-Identifier: Apache-2.0
"""Creating bundles from a hub and a real registry in trouble, as a process: killed, on small disks, in little
memory."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dev.binaries import BuildFailed, binary
from dev.hub import HubServer
from sovereign_airgap.bundle.charts import pack
from sovereign_airgap.bundle.index import Kind
from sovereign_airgap.bundle.opening import open_bundle
from sovereign_airgap.bundle.verify import Verified, verify
from sovereign_airgap.manifest import MANIFEST_TYPE, Descriptor
from sovereign_airgap.progress import Progress
from tests.dataplane.models import SECOND, WEIGHTS, framed
from tests.dataplane.site import REPO, Outcome, Site
from tests.dataplane.test_outages import assert_told_well
from tests.dataplane.test_process import COMMAND, Command, small_disk, start, wait_for_a_request
from tests.unit.faults import proxy
from tests.unit.faults.proxy import Answer, Change, Cut, Fault, Hang

QUICK = ("--attempts", "3", "--longest-pause", "0.05")
LAYER = b"a layer of the image" * 10_000


def arguments(site: Site, out: Path, *more: str) -> tuple[str, ...]:
    reach = ("--plain-http", "--endpoint", site.hub.url, *QUICK)
    return ("bundle", "create", "-o", str(out), "--name", "site", "--model", site.source, *reach, *more)


def push_image(site: Site, tag: str = "v1") -> str:
    """An image in the site's repository; returns its reference."""
    config = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
    described = []
    for media_type, content in (
        ("application/vnd.oci.image.config.v1+json", config),
        ("application/vnd.oci.image.layer.v1.tar+gzip", LAYER),
    ):
        site.put_blob(content)
        described.append(Descriptor.of(media_type, content).as_json())
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described[0], "layers": described[1:],
    }  # fmt: skip
    content = json.dumps(manifest).encode()
    status, told = site.ask("PUT", f"manifests/{tag}", content, **{"Content-Type": MANIFEST_TYPE})
    assert status == 201, told
    return f"{site.registry.host}/{site.repository}:{tag}"


def whole(out: Path) -> Verified:
    """What is there verifies, and nothing is left beside it."""
    assert not out.with_name(out.name + ".unfinished").exists()
    return verify(open_bundle(out), [], 1, Progress())


def made(site: Site, folder: Path, *more: str) -> Outcome:
    return start(folder, *arguments(site, folder / "bundle", *more)).ended()


def assert_nothing_there(outcome: Outcome, folder: Path) -> None:
    assert_told_well(outcome)
    assert not os.path.lexists(folder / "bundle")


def test_a_model_and_an_image_of_a_real_registry_arrive_whole(site: Site, tmp_path: Path) -> None:
    image = push_image(site)
    done = made(site, tmp_path, "--image", image)
    assert (done.code, done.reason) == (0, "Created"), done
    found = whole(tmp_path / "bundle")
    assert str(found.index_digest) == done.digest
    (model,), (carried,) = found.index.of_kind(Kind.MODEL), found.index.of_kind(Kind.IMAGE)
    assert carried.name == f"{site.repository}:v1"
    # The same from the registry's own artifact, under the name that it has there.
    digest = site.mirror().digest
    assert str(model.descriptor.digest) == digest
    shutil.rmtree(tmp_path / "bundle")
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({
        "name": "site",
        "models": [{"source": f"{site.target}@{digest}", "repository": model.repository}],
        "images": [{"reference": image}],
    }))  # fmt: skip
    out = str(tmp_path / "bundle")
    again = start(tmp_path, "bundle", "create", "-o", out, str(spec), "--plain-http", *QUICK).ended()
    assert again.digest == done.digest, again


@pytest.mark.parametrize(
    "fault",
    [
        Answer(500), Answer(429, {"Retry-After": "1"}), Answer(503), Cut(1000),
        Change(proxy.header("Content-Length", "7")),
    ],
    ids=["500", "429", "503", "cut", "lying length"],
)  # fmt: skip
def test_what_happens_once_is_overcome(site: Site, tmp_path: Path, fault: Fault) -> None:
    image = push_image(site)
    site.storage.break_(fault, method="GET", times=1)
    site.registry.break_(fault, method="GET", path="/blobs/", times=1)
    assert made(site, tmp_path, "--image", image).code == 0
    whole(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Answer(500), "RegistryUnavailable"),
        (Answer(403), "RegistryForbidden"),
        (Cut(100), "RegistryUnavailable"),
        (Change(proxy.flip(at=10)), "RegistryBlobCorrupt"),
        (Change(proxy.shorten(1)), "SizeMismatch"),
        (Change(proxy.lengthen(1)), "SizeMismatch"),
    ],
    ids=["500", "403", "cut", "flipped", "shortened", "lengthened"],
)
def test_what_stays_has_its_reason_and_the_retry_works(
    site: Site, tmp_path: Path, fault: Fault, reason: str
) -> None:
    image = push_image(site)
    layer = hashlib.sha256(LAYER).hexdigest()
    site.registry.break_(fault, method="GET", path=f"/blobs/sha256:{layer}")
    failed = made(site, tmp_path, "--image", image)
    assert failed.reason == reason, failed
    assert_nothing_there(failed, tmp_path)
    site.registry.heal()
    downloads = site.storage.count("GET")
    assert made(site, tmp_path, "--image", image).code == 0
    assert site.storage.count("GET") == downloads, "verified weights were fetched again"
    whole(tmp_path / "bundle")


def killed_while_the_second_shard_hangs(site: Site, folder: Path) -> Command:
    """A run that has one shard and waits for the other."""
    site.storage.break_(Hang(after=10), path=f"filename={SECOND}")
    command = start(folder, *arguments(site, folder / "bundle", "--stall-seconds", "60"))
    wait_for_a_request(site.storage, "GET", f"filename={SECOND}")
    wait_for_a_request(site.storage, "GET", f"filename={WEIGHTS}")
    blobs = folder / "bundle.unfinished/bundle/blobs/sha256"
    first = hashlib.sha256((site.hub_folder / REPO / WEIGHTS).read_bytes()).hexdigest()
    while not (blobs / first).exists():
        assert command.process.poll() is None
    return command


def test_kill_9_costs_only_the_file_that_was_on_its_way(site: Site, tmp_path: Path) -> None:
    command = killed_while_the_second_shard_hangs(site, tmp_path)
    command.process.kill()
    command.process.communicate(timeout=30)
    assert not os.path.lexists(tmp_path / "bundle")
    site.storage.heal()
    site.storage.asked.clear()
    assert made(site, tmp_path).code == 0
    whole(tmp_path / "bundle")
    assert (site.storage.count("GET", f"filename={WEIGHTS}"), site.storage.count("GET", SECOND)) == (0, 1)


def test_a_signal_ends_the_run_at_once_and_the_next_goes_on(site: Site, tmp_path: Path) -> None:
    command = killed_while_the_second_shard_hangs(site, tmp_path)
    command.process.send_signal(signal.SIGTERM)
    failed = command.ended()
    assert (failed.reason, failed.code) == ("Interrupted", 1), failed
    assert_nothing_there(failed, tmp_path)
    site.storage.heal()
    assert made(site, tmp_path).code == 0
    whole(tmp_path / "bundle")


def test_a_full_disk_and_a_read_only_one_leave_nothing(site: Site, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for kibibytes, reason in ((24, "DiskFull"), (1100, "DiskFull")):
        within = small_disk(place, kibibytes)
        failed = start(tmp_path, *arguments(site, place / "bundle"), within=within).ended()
        assert (failed.reason, failed.code) == (reason, 1), failed
        assert_nothing_there(failed, place)
    read_only = [word.replace("size=1100k", "ro") for word in small_disk(place, 1100)]
    failed = start(tmp_path, *arguments(site, place / "bundle"), within=read_only).ended()
    assert (failed.reason, failed.code) == ("DiskFailed", 1), failed
    assert_nothing_there(failed, place)
    assert made(site, place).code == 0
    whole(place / "bundle")


# A process inherits the peak of the one that started it, and this one is large: a small one stands between.
MEASURED = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / REPO
    folder.mkdir(parents=True)
    size = 64 * 1024 * 1024
    names = {}
    for number in range(1, 5):
        name = f"model-0000{number}-of-00004.safetensors"
        names[f"t{number}"] = name
        tensor = {f"t{number}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
        header = framed(json.dumps(tensor).encode())
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([number]))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with HubServer(tmp_path / "hub") as hub:
        source = f"hf://{REPO}@{hub.commit(REPO)}"
        done = subprocess.run(
            [
                *(sys.executable, "-c", MEASURED, COMMAND, "bundle", "create"),
                *("-o", str(tmp_path / "bundle"), "--name", "large"),
                *("--model", source, "--endpoint", hub.endpoint, "--progress", "none"),
            ],
            stdout=subprocess.PIPE,
            check=True,
        )
    assert sum(path.stat().st_size for path in (tmp_path / "bundle").rglob("*")) > 4 * size
    peak = int(done.stdout.split()[-1])
    assert peak < 150 * 1024, f"{peak} KiB"


def test_helm_reads_our_own_charts_as_they_are_packed(tmp_path: Path) -> None:
    try:
        helm = binary("helm")
    except BuildFailed as failure:
        pytest.skip(f"helm cannot be built here: {failure}")
    for name in ("sovereign-crds", "sovereign-operator"):
        archive = tmp_path / f"{name}.tgz"
        archive.write_bytes(pack(Path("charts") / name).archive)
        shown = subprocess.run([helm, "show", "chart", archive], capture_output=True, text=True, check=True)
        assert f"name: {name}" in shown.stdout
