# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the mirror benchmark. Each brings the same weights into an empty registry."""

import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Run, run
from bench.stage import REPO, Stage, addresses
from dev.binaries import BuildFailed, binary
from dev.hub import HubServer

VENV = Path(sys.executable).parent


@dataclass(frozen=True)
class Course:
    """What a contestant is given."""

    stage: Stage
    hub: HubServer
    registry: str
    """Host and port; the registry is empty and speaks plain HTTP."""
    scratch: Path
    workers: int


class Contestant(ABC):
    name: str
    moves: str
    """What it does of the whole way from the hub to the registry."""

    def missing(self) -> str | None:
        """Why it cannot take part here."""
        return None

    @abstractmethod
    def go(self, course: Course) -> Run: ...


class Floor(Contestant):
    name = "floor"
    moves = "hub to registry, bare http.client and sha256"

    def go(self, course: Course) -> Run:
        urls = addresses(course.hub, course.stage)
        module = [sys.executable, "-m", "bench.floor"]
        return run([*module, str(course.workers), course.registry, "models/bench", *urls])


class Ours(Contestant):
    name = "sovereign-airgap"
    moves = "hub to registry, everything checked"

    def go(self, course: Course) -> Run:
        source = f"hf://{REPO}@{course.hub.commit(REPO)}"
        return run(
            [
                *(str(VENV / "sovereign-airgap"), "mirror", source, f"oci://{course.registry}"),
                *("--plain-http", "--endpoint", course.hub.endpoint, "--progress", "none"),
                *("--result-file", str(course.scratch / "result.json")),
            ]
        )


class Crane(Contestant):
    name = "crane"
    moves = "OCI layout to registry"

    def missing(self) -> str | None:
        try:
            binary("crane")
        except BuildFailed as failure:
            return str(failure)
        return None

    def go(self, course: Course) -> Run:
        target = f"{course.registry}/models/bench:latest"
        return run([str(binary("crane")), "push", "--insecure", str(course.stage.layout), target])


class Skopeo(Contestant):
    name = "skopeo"
    moves = "OCI layout to registry"

    def missing(self) -> str | None:
        return None if shutil.which("skopeo") else "skopeo is not installed"

    def go(self, course: Course) -> Run:
        return run(
            [
                *("skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false"),
                *(f"oci:{course.stage.layout}", f"docker://{course.registry}/models/bench:latest"),
            ]
        )


class TwoSteps(Contestant):
    """Download to disk, then push. Packing the download as an artifact is not even counted."""

    moves = "hub to disk, then OCI layout to registry"

    def __init__(self, push: Contestant) -> None:
        self._push = push
        self.name = f"hf download + {push.name}"

    def missing(self) -> str | None:
        return self._push.missing()

    def go(self, course: Course) -> Run:
        with tempfile.TemporaryDirectory(dir=course.scratch) as folder:
            environment = {
                "HF_ENDPOINT": course.hub.endpoint,
                "HF_HOME": f"{folder}/home",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
            commit = course.hub.commit(REPO)
            download = [
                str(VENV / "hf"),
                "download",
                REPO,
                "--revision",
                commit,
                "--local-dir",
                f"{folder}/model",
            ]
            return run(download, environment).then(self._push.go(course))


def everybody() -> list[Contestant]:
    crane, skopeo = Crane(), Skopeo()
    pusher: Contestant = crane if crane.missing() is None else skopeo
    return [Floor(), Ours(), crane, skopeo, TwoSteps(pusher)]
