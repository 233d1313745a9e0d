# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for ctr, kubectl and helm: each notes what it was told and keeps just enough to answer for it.

They run as programs of their own, so that what is tested is what a machine would see.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -IB
import base64, io, json, pathlib, sys, tarfile
state = pathlib.Path({state!r})
name, words = {name!r}, sys.argv[1:]
told = sys.stdin.buffer.read() if words[-1:] == ["-"] or words[-2:] == ["import", "-"] else b""
with (state / "calls.jsonl").open("a") as log:
    log.write(json.dumps([name, *words]) + "\\n")
answers = json.loads((state / "answers.json").read_text())
if name in answers.get("fails", []):
    sys.exit("error: " + name + " was told to fail")

def kept(what, line=None):
    place = state / what
    lines = place.read_text().splitlines() if place.exists() else []
    if line is not None and line not in lines:
        place.write_text("\\n".join([*lines, line]) + "\\n")
    return lines

if name == "ctr" and words[3:] == ["list"]:
    print("REF TYPE DIGEST SIZE PLATFORMS LABELS")
    print(*kept("images"), sep="\\n")
elif name == "ctr" and words[3] == "import":
    with tarfile.open(fileobj=io.BytesIO(told)) as archive:
        index = json.load(archive.extractfile("index.json"))
        for one in index["manifests"]:
            assert archive.getmember("blobs/" + one["digest"].replace(":", "/")).size == one["size"]
            kept("images", one["annotations"]["io.containerd.image.name"] + " type " + one["digest"] + " 1")
elif name == "kubectl" and words[2:4] == ["get", "namespace"]:
    print("namespace/" + words[4] if words[4] in kept("namespaces") else "")
elif name == "kubectl" and words[0] == "create":
    made = json.loads(told)
    kept("namespaces", made["metadata"]["name"])
    kept("labels", json.dumps(made["metadata"]["labels"]))
elif name == "kubectl" and "deployments" in words:
    print("deployment.apps/one")
elif name == "kubectl" and "service" in words:
    print(answers["address"], end="")
elif name == "kubectl" and "secret" in words:
    config = {{"auths": {{"registry:5001": answers["login"]}}}}
    print(base64.b64encode(json.dumps(config).encode()).decode(), end="")
elif name == "kubectl" and "port-forward" in words:
    print("Forwarding from 127.0.0.1:" + answers["forwarded"] + " -> 5001", flush=True)
    sys.stdin.buffer.read()
    import time; time.sleep(60)
"""


@dataclass(frozen=True)
class SitePrograms:
    """`bin` goes in front of PATH, `folder` keeps what they note."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def place(self, name: str, folder: Path | None = None) -> Path:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PROGRAM.format(python=sys.executable, state=str(self.folder), name=name))
        path.chmod(0o755)
        return path

    def answer(self, **answers: Any) -> None:
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def calls(self, name: str) -> list[list[str]]:
        """What the program was told, in order."""
        log = self.folder / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == name]

    def kept(self, what: str) -> list[str]:
        place = self.folder / what
        return place.read_text().splitlines() if place.exists() else []
