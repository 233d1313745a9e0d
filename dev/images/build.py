# SPDX-License-Identifier: Apache-2.0
"""Builds with buildah, pushes with skopeo; what it knows of earlier builds lies in the cache.

buildah's own push compresses and changes the digest; skopeo's `--preserve-digests` keeps what was built.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dev.images import machine
from dev.images.catalogue import CATALOGUE, IGNORED_FOLDERS, ROOT, Image, inputs_hash, lineage
from dev.images.errors import BuildFailed
from dev.images.rootfs import make_rootfs
from dev.paths import cache_root

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
Progress = Callable[[str], None]


TOOLS = ("buildah", "skopeo", "debootstrap")


def build_and_push(
    names: Sequence[str], registry: str, progress: Progress = lambda line: None
) -> dict[str, str]:
    """Makes the registry (host:port, plain HTTP) hold the images; returns their references by digest."""
    if unknown := sorted(set(names) - set(CATALOGUE)):
        raise BuildFailed(f"no such image: {', '.join(unknown)}; there are {', '.join(sorted(CATALOGUE))}")
    _require_tools()
    with _one_builder():
        return {name: f"{registry}/{name}@{_pushed(CATALOGUE[name], registry, progress)}" for name in names}


def _require_tools() -> None:
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        packages = " ".join(missing)
        raise BuildFailed(
            f"expected {', '.join(TOOLS)} on PATH, found no {packages}: apt-get install {packages}"
        )
    if os.geteuid() != 0:
        raise BuildFailed("images are built as root: debootstrap and chroot need it; found another user")


@contextmanager
def _one_builder() -> Iterator[None]:
    """Two builds at once would build the same parents twice."""
    folder = cache_root() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pushed(image: Image, registry: str, progress: Progress) -> str:
    record = cache_root() / "images" / f"{image.name}.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("local") == local_name(image) and registry_has(registry, image.name, known["digest"]):
        return str(known["digest"])
    local = _built(image, progress)
    progress(f"push {image.name}")
    digest = _push(local, registry, image.name)
    record.write_text(json.dumps({"local": local, "digest": digest}) + "\n")
    _forget_superseded(image)
    return digest


def current_hash(image: Image) -> str:
    """The hash of the image's inputs as they are now, its parents' included."""
    result = ""
    for one in lineage(image.name):
        distribution = " ".join((machine.mirror()[0], *one.debian)) if one.debian else ""
        result = inputs_hash(one, parent=result, machine=distribution, binary=_binary(one))
    return result


def _binary(image: Image) -> Path | None:
    if image.binary is None:
        return None
    from dev.binaries import binary  # a Go build: only for the images that need one

    return binary(image.binary)


def local_name(image: Image) -> str:
    return f"localhost/sovereign/{image.name}:{current_hash(image)[:24]}"


def _built(image: Image, progress: Progress) -> str:
    """The image's name in the local storage, after building what is missing of its lineage."""
    while not _is_local(name := local_name(image)):
        parent = _built(CATALOGUE[image.parent], progress) if image.parent else None
        progress(f"build {image.name}")
        with tempfile.TemporaryDirectory(prefix="sovereign-image-", dir=cache_root() / "images") as scratch:
            context = Path(scratch) / "context"
            fill_context(image, context)
            # The sources may be edited while they are copied: an image must be what its name says.
            if local_name(image) == name:
                _buildah_build(image, name, context, parent, Path(scratch))
    return name


def _is_local(name: str) -> bool:
    return bool(_run("buildah", "images", "--quiet", "--filter", f"reference={name}").strip())


def fill_context(image: Image, context: Path) -> None:
    """The folder that a Containerfile sees: its own files, and what its kind of image is made of."""
    shutil.copytree(ROOT / "images" / image.folder, context)
    if image.debian:
        make_rootfs(image.debian, context / "rootfs.tar")
    if image.binary is not None:
        shutil.copy2(_binary(image) or "", context / image.binary)
    if image.lock or image.wheels:
        shutil.copy2(ROOT / "images/install.sh", context)
        shutil.copy2(_uv(), context / "uv")
    if image.lock:
        (context / "locks").mkdir()
        shutil.copy2(ROOT / "locks" / f"{image.lock}.txt", context / "locks")
    for file in image.files:
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / file).is_dir():
            shutil.copytree(ROOT / file, context / file, ignore=shutil.ignore_patterns(*IGNORED_FOLDERS))
        else:
            shutil.copy2(ROOT / file, context / file)
    for source in image.wheels:
        _run(
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "-t",
            "wheel",
            "-d",
            str(context / "wheels"),
            cwd=ROOT / source,
        )


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise BuildFailed("expected uv beside the interpreter or on PATH, found none; install locks/uv.txt")
    return found


def _buildah_build(image: Image, name: str, context: Path, parent: str | None, scratch: Path) -> None:
    command = ["buildah", "build", "--isolation", "chroot", "--layers=false", "--timestamp", "0", "--quiet"]
    command += ["--format", "oci", "--pull-never", "--file", str(context / "Containerfile"), "--tag", name]
    if parent is not None:
        command += ["--build-arg", f"BASE={parent}"]
    for argument, value in image.build_arguments:
        command += ["--build-arg", f"{argument}={value}"]
    command += _secrets(scratch)
    _run(*command, str(context))


def _secrets(scratch: Path) -> list[str]:
    """Index settings and certificates as secrets, uv's cache as a volume: none of it stays in the image."""
    settings = machine.index_settings(machine.pip_configuration())
    options: list[str] = []
    if (links := Path(settings.get("UV_FIND_LINKS", ""))).is_absolute():
        del settings["UV_FIND_LINKS"]
        if links.is_dir() and any(links.iterdir()):
            options += ["--volume", f"{links}:{links}:ro"]
            settings["UV_FIND_LINKS"] = str(links)
    cache = _run(_uv(), "cache", "dir").strip()
    Path(cache).mkdir(parents=True, exist_ok=True)
    options += ["--volume", f"{cache}:/var/cache/uv:rw"]
    settings["UV_CACHE_DIR"] = "/var/cache/uv"
    packages = scratch / "packages"
    packages.write_text(machine.shell_exports(settings))
    packages.chmod(0o600)
    options += ["--secret", f"id=packages,src={packages}"]
    if (bundle := machine.certificates()) is not None:
        options += ["--secret", f"id=ca,src={bundle}"]
    return options


def registry_has(registry: str, repository: str, digest: str) -> bool:
    request = urllib.request.Request(
        f"http://{registry}/v2/{repository}/manifests/{digest}",
        method="HEAD",
        headers={"Accept": MANIFEST_TYPES},
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return int(answer.status) == 200
    except urllib.error.HTTPError as answer:
        if answer.code == 404:
            return False
        raise BuildFailed(
            f"the registry at {registry} answered {answer.code} for {repository}@{digest}"
        ) from answer
    except OSError as error:
        raise BuildFailed(f"no registry answers at {registry}: {error}; is the cluster up?") from error


def _push(local: str, registry: str, repository: str) -> str:
    with tempfile.NamedTemporaryFile("r") as digest:
        _run(
            *("skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"),
            *(
                "--digestfile",
                digest.name,
                f"containers-storage:{local}",
                f"docker://{registry}/{repository}:latest",
            ),
        )
        return digest.read().strip()


def _forget_superseded(image: Image) -> None:
    """Older builds of the image and its parents only take up disk; layers that others stand on stay."""
    current = {local_name(one) for one in lineage(image.name)}
    prefixes = tuple(name.partition(":")[0] + ":" for name in current)
    for entry in json.loads(_run("buildah", "images", "--json") or "[]") or []:
        for name in entry.get("names") or []:
            if name.startswith(prefixes) and name not in current:
                subprocess.run(["buildah", "rmi", name], check=False, capture_output=True)


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildFailed(f"{' '.join(command[:2])} ended with {done.returncode}:\n{said}")
    return done.stdout
