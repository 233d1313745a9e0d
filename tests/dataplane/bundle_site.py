# SPDX-License-Identifier: Apache-2.0
"""One test's world on the far side of the gap: a bundle on a disk and a real registry behind a proxy."""

import contextlib
import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dev.registry import LocalRegistry
from sovereign_airgap.access import Access
from sovereign_airgap.bundle.index import Kind, Root
from sovereign_airgap.bundle.layout import Directory, blob_path
from sovereign_airgap.bundle.load import Loaded, LoadOptions, load
from sovereign_airgap.digest import Digest
from sovereign_airgap.errors import SovereignError
from sovereign_airgap.manifest import INDEX_TYPE, MANIFEST_TYPE, ModelManifest
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.reference import OciReference
from tests.dataplane.site import PATIENCE, Outcome
from tests.dataplane.test_process import Command, start
from tests.unit.airgap.bundles import MODEL_ONE, a_root, index_of
from tests.unit.faults.proxy import FaultyProxy

ACCEPT = f"{MANIFEST_TYPE}, {INDEX_TYPE}"
SHARD = "model-00001-of-00003.safetensors"
# Shards of 1.1 MB: larger than what is sent in one piece.
WIDTH = 11_500


@dataclass
class BundleSite:
    bundle: Path
    server: LocalRegistry
    registry: FaultyProxy
    prefix: str
    """Below it is everything of one test: the registry is shared."""
    patience: Patience = PATIENCE
    chunk: int = 256 * 1024
    loaded: Loaded | None = None

    @property
    def target(self) -> str:
        return f"oci://{self.registry.host}/{self.prefix}"

    @property
    def shard(self) -> Digest:
        """A blob that both models have."""
        content = (self.bundle / blob_path(a_root(self.bundle, MODEL_ONE).descriptor.digest)).read_bytes()
        return next(layer.digest for layer in ModelManifest.parse(content).layers if layer.path == SHARD)

    @property
    def roots(self) -> tuple[Root, ...]:
        """What has a tag."""
        return tuple(root for root in index_of(self.bundle).roots if root.kind is not Kind.FILE)

    def hasten(self) -> None:
        """A second without a byte counts as stalled."""
        self.patience = replace(self.patience, stall=1.0)

    def load(self, bundle: Path | None = None) -> Outcome:
        options = LoadOptions(access=Access(plain_http=True), patience=self.patience, chunk=self.chunk)
        reader = Directory(bundle or self.bundle)
        try:
            self.loaded = load(reader, OciReference.parse(self.target), options, Progress())
        except SovereignError as error:
            return Outcome(error.exit_code, error.reason, str(error))
        return Outcome(0, "Loaded", "", str(self.loaded.cargo.index_digest))

    # -- what the registry holds, asked past the proxy -------------------------------------------------------

    def tag(self, root: Root) -> str | None:
        """The digest behind the root's tag."""
        status, body = self.ask("GET", f"{root.repository}/manifests/{root.tag}", Accept=ACCEPT)
        return None if status == 404 else f"sha256:{hashlib.sha256(body).hexdigest()}"

    def tagged(self) -> list[Root]:
        return [root for root in self.roots if self.tag(root) is not None]

    def state(self) -> list[str]:
        """Tags of the record: bundles that were loaded, and claims."""
        status, body = self.ask("GET", "sovereign/state/tags/list")
        return sorted(json.loads(body)["tags"] or []) if status == 200 else []

    def held_bytes(self) -> int:
        """Bytes of the bundle's blobs that any repository of this place can serve."""
        names = [path.name for path in (self.bundle / "blobs/sha256").iterdir()]
        held = [name for name in names if self.holds(name)]
        return sum((self.bundle / "blobs/sha256" / name).stat().st_size for name in held)

    def holds(self, hexadecimal: str) -> bool:
        repositories = {root.repository for root in self.roots} | {"sovereign/state"}
        return any(
            self.ask("HEAD", f"{repository}/blobs/sha256:{hexadecimal}")[0] == 200
            for repository in repositories
        )

    def assert_tags_are_whole(self) -> None:
        """Whatever is tagged is what the bundle says, and every byte below it is there and right."""
        for root in self.tagged():
            assert self.tag(root) == str(root.descriptor.digest), root
            self._assert_whole(root.repository, root.descriptor.digest)

    def _assert_whole(self, repository: str, digest: Digest) -> None:
        status, body = self.ask("GET", f"{repository}/manifests/{digest}", Accept=ACCEPT)
        assert status == 200, (repository, digest)
        assert Digest.of(body) == digest
        document = json.loads(body)
        for child in document.get("manifests", []):
            self._assert_whole(repository, Digest.parse(child["digest"]))
        for blob in [document["config"], *document["layers"]] if "config" in document else []:
            status, content = self.ask("GET", f"{repository}/blobs/{blob['digest']}")
            assert status == 200, (repository, blob)
            assert (len(content), str(Digest.of(content))) == (blob["size"], blob["digest"])

    def assert_loaded(self) -> None:
        assert self.tagged() == list(self.roots)
        self.assert_tags_are_whole()
        assert not [tag for tag in self.state() if tag.startswith("_")]

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.server.host, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, f"/v2/{self.prefix}/{path}", headers=headers)
            response = connection.getresponse()
            return response.status, response.read()


@contextlib.contextmanager
def a_bundle_site(bundle: Path, server: LocalRegistry, prefix: str) -> Iterator[BundleSite]:
    with FaultyProxy(server.url) as front:
        yield BundleSite(bundle, server, front, prefix)


def assert_succeeds_now(site: BundleSite) -> None:
    """And sends no blob that the registry has: each is opened for upload at most once more."""
    site.registry.heal()
    held = site.held_bytes()
    again = site.load()
    assert again.code == 0, again
    assert site.loaded is not None
    total = sum(path.stat().st_size for path in (site.bundle / "blobs/sha256").iterdir())
    assert site.loaded.sent_bytes <= total - held
    site.assert_loaded()


def a_load(site: BundleSite, folder: Path, *options: str) -> Command:
    return start(folder, "bundle", "load", str(site.bundle), site.target, "--plain-http", *options)


def wait_until_struck(front: FaultyProxy) -> None:
    ends = time.monotonic() + 60
    while not front.struck:
        assert time.monotonic() < ends, "the request never came"
        time.sleep(0.02)
