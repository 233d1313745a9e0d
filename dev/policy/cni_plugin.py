# SPDX-License-Identifier: Apache-2.0
"""A chained CNI plugin: no container of a pod starts before the policy agent has its rules in force.

Runs alone (`python -IS`, standard library only), so it imports nothing of this repository. It writes down
what the sandbox's addresses are, whether or not the agent is on, and then waits for the agent. An agent that
is switched off on purpose is not waited for; one that should run and does not answer makes the ADD fail.
"""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

VERSIONS = ["0.4.0", "1.0.0", "1.1.0"]
WAIT_SECONDS = 20.0
_TRY_AGAIN = 11  # CNI: the runtime should try later


class Refused(Exception):
    """The sandbox gets no network; the text says why."""


def main() -> int:
    command = os.environ.get("CNI_COMMAND", "")
    if command == "VERSION":
        print(json.dumps({"cniVersion": "1.0.0", "supportedVersions": VERSIONS}))
        return 0
    config: dict[str, Any] = json.load(sys.stdin)
    folder = Path(config["folder"])
    try:
        if command == "ADD":
            _add(folder, config)
            print(json.dumps(config["prevResult"]))
        elif command == "DEL":
            _delete(folder)
    except Refused as refused:
        version = config.get("cniVersion", "1.0.0")
        print(json.dumps({"cniVersion": version, "code": _TRY_AGAIN, "msg": str(refused)}))
        return 1
    return 0


def _add(folder: Path, config: dict[str, Any]) -> None:
    container = os.environ["CNI_CONTAINERID"]
    words = dict(part.split("=", 1) for part in os.environ.get("CNI_ARGS", "").split(";") if "=" in part)
    record = {
        "container": container,
        "namespace": words.get("K8S_POD_NAMESPACE", ""),
        "name": words.get("K8S_POD_NAME", ""),
        "uid": words.get("K8S_POD_UID", ""),
        "addresses": [one["address"].partition("/")[0] for one in config["prevResult"].get("ips", [])],
    }
    place = _record(folder, container)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(record))
    partial.rename(place)
    if not _enforced(folder):
        return
    try:
        answer = _ask(folder, {"enforce": container}, WAIT_SECONDS)
    except (OSError, ValueError) as error:
        raise Refused(
            f"The policy agent should have the rules of pod {record['namespace']}/{record['name']} in force "
            f"before it starts, and does not answer ({error}); see `python -m dev cluster status`."
        ) from error
    if answer.get("error"):
        raise Refused(str(answer["error"]))


def _delete(folder: Path) -> None:
    """Also without an agent, and again: what is gone is gone."""
    _record(folder, os.environ["CNI_CONTAINERID"]).unlink(missing_ok=True)
    if _enforced(folder):
        with contextlib.suppress(OSError, ValueError):
            _ask(folder, {"forget": os.environ["CNI_CONTAINERID"]}, 1.0)


def _record(folder: Path, container: str) -> Path:
    return folder / "sandboxes" / f"{container}.json"


def _enforced(folder: Path) -> bool:
    """Whether the agent should run. A file that cannot be read means that it should."""
    try:
        return json.loads((folder / "wanted.json").read_text())["enforced"] is not False
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _ask(folder: Path, question: dict[str, str], seconds: float) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(seconds)
        asking.connect(str(folder / "agent.sock"))
        asking.sendall(json.dumps(question).encode() + b"\n")
        with asking.makefile("rb") as answers:
            answer = json.loads(answers.readline(4096) or b"null")
    if not isinstance(answer, dict):
        raise ValueError("it closed the connection without a word")
    return answer


if __name__ == "__main__":
    sys.exit(main())
