# SPDX-License-Identifier: Apache-2.0
"""One test's world: a hub, its storage and a real registry, each behind a proxy that can break it."""

import contextlib
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dev.hub import HubServer
from dev.registry import LocalRegistry
from sovereign_airgap.access import Access
from sovereign_airgap.errors import SovereignError
from sovereign_airgap.manifest import MANIFEST_TYPE
from sovereign_airgap.mirror import MirrorOptions, mirror
from sovereign_airgap.pace import Patience
from sovereign_airgap.progress import Progress
from sovereign_airgap.pull import PullOptions, pull
from sovereign_airgap.reference import HubReference, OciReference
from tests.dataplane.models import write
from tests.unit.faults.proxy import FaultyProxy

REPO = "acme/tiny"
# The production values wait for minutes. A stall of 20 s is never reached unless a test makes it shorter.
PATIENCE = Patience(
    attempts=3, first_pause=0.01, longest_pause=0.05, longest_retry_after=1.0, connect=10.0, stall=20.0
)


@dataclass(frozen=True)
class Outcome:
    """How a verb ended: what it returned, or the error that the command would tell."""

    code: int
    reason: str
    message: str
    digest: str = ""


@dataclass
class Site:
    hub_folder: Path
    hub_server: HubServer
    hub: FaultyProxy
    storage: FaultyProxy
    registry_server: LocalRegistry
    registry: FaultyProxy
    repository: str
    """The name in the registry; each test has its own."""
    patience: Patience = PATIENCE

    @property
    def commit(self) -> str:
        return self.hub_server.commit(REPO)

    @property
    def source(self) -> str:
        return f"hf://{REPO}@{self.commit}"

    @property
    def target(self) -> str:
        return f"oci://{self.registry.host}/{self.repository}"

    def publish(self, files: dict[str, bytes]) -> None:
        write(self.hub_folder / REPO, files)

    def hasten(self) -> None:
        """A second without a byte counts as stalled."""
        self.patience = replace(self.patience, stall=1.0)

    def mirror(self, *, commit: str | None = None, token: str | None = None) -> Outcome:
        options = MirrorOptions(
            access=Access(plain_http=True), endpoint=self.hub.url, token=token, patience=self.patience
        )
        source = HubReference(REPO, commit or self.commit)
        target = OciReference.parse(self.target)
        return outcome_of(lambda: str(mirror(source, target, options, Progress()).digest))

    def pull(self, digest: str, folder: Path, *, config_only: bool = False) -> Outcome:
        options = PullOptions(access=Access(plain_http=True), patience=self.patience, config_only=config_only)
        reference = OciReference.parse(f"{self.target}@{digest}")
        return outcome_of(lambda: str(pull(reference, folder, options, Progress()).digest))

    # -- what the registry holds, asked past the proxy -------------------------------------------------------

    def tags(self) -> list[str]:
        status, body = self.ask("GET", "tags/list")
        return sorted(json.loads(body)["tags"] or []) if status == 200 else []

    def manifest(self, reference: str) -> dict[str, object]:
        status, body = self.ask("GET", f"manifests/{reference}", Accept=MANIFEST_TYPE)
        assert status == 200, f"{reference} is not in the registry"
        parsed: dict[str, object] = json.loads(body)
        return parsed

    def put_manifest(self, body: bytes, media_type: str) -> str:
        """Whatever a stranger may have pushed; returns its digest."""
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        status, told = self.ask("PUT", f"manifests/{digest}", body, **{"Content-Type": media_type})
        assert status == 201, told
        return digest

    def put_blob(self, body: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        connection = http.client.HTTPConnection(self.registry_server.host, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", f"/v2/{self.repository}/blobs/uploads/")
            begun = connection.getresponse()
            begun.read()
            location = begun.headers["Location"]
            connection.request("PUT", f"{location}&digest={digest}", body)
            ended = connection.getresponse()
            assert ended.status == 201, ended.read()
        return digest

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.registry_server.host, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, f"/v2/{self.repository}/{path}", body, headers)
            response = connection.getresponse()
            return response.status, response.read()


def outcome_of(verb: Callable[[], str]) -> Outcome:
    try:
        return Outcome(0, "Done", "", verb())
    except SovereignError as error:
        return Outcome(error.exit_code, error.reason, str(error))


@contextlib.contextmanager
def a_site(folder: Path, files: dict[str, bytes], registry: LocalRegistry, repository: str) -> Iterator[Site]:
    hub_folder = folder / "hub"
    write(hub_folder / REPO, files)
    with contextlib.ExitStack() as stack:
        hub_server = stack.enter_context(HubServer(hub_folder))
        storage = stack.enter_context(FaultyProxy(hub_server.storage_endpoint))
        hub_server.storage_url = storage.url
        yield Site(
            hub_folder=hub_folder,
            hub_server=hub_server,
            hub=stack.enter_context(FaultyProxy(hub_server.endpoint)),
            storage=storage,
            registry_server=registry,
            registry=stack.enter_context(FaultyProxy(registry.url)),
            repository=repository,
        )
