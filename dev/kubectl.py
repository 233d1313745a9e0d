# SPDX-License-Identifier: Apache-2.0
"""kubectl as a value: one prefix (binary and kubeconfig), used by the demo and by the cluster tests.

A person would use kubectl too, so what these see is what users see.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Timer
from time import monotonic
from typing import Any

Manifest = dict[str, Any]


class KubectlFailed(RuntimeError):
    """A kubectl call ended with an error; the text is kubectl's own last words."""


@dataclass(frozen=True)
class Kubectl:
    """`prefix` is the command with everything that chooses the cluster: `(kubectl, --kubeconfig, F)`."""

    prefix: tuple[str, ...]

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run and return standard output; raise KubectlFailed with kubectl's message otherwise."""
        done = subprocess.run(
            [*self.prefix, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(arguments[:6])}: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def get(self, *arguments: str) -> Manifest:
        return _object(self("get", *arguments, "-o", "json"))

    def find(self, *arguments: str) -> Manifest | None:
        """Like get, but None where the object (or its whole kind) is not there."""
        text = self("get", *arguments, "-o", "json", "--ignore-not-found")
        return _object(text) if text.strip() else None

    def items(self, *arguments: str) -> list[Manifest]:
        return list(self.get(*arguments)["items"])

    def apply(self, *manifests: Manifest) -> str:
        """Server-side apply, as `kubectl apply --server-side -f -` would by hand."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(document))

    def watch(self, *arguments: str, seconds: float) -> Iterator[Manifest]:
        """Yield what is there now and each change; end after `seconds`. One object is `kind, named(NAME)`.

        Begins again when kubectl gives up, as it does when a definition has just come and its storage is not
        ready: then the object is yielded once more.
        """
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0:
            yield from self._watch_once(*arguments, seconds=left)
            Event().wait(min(0.5, left))  # not a hot loop while the object is not there

    def _watch_once(self, *arguments: str, seconds: float) -> Iterator[Manifest]:
        process = subprocess.Popen(
            [*self.prefix, "get", *arguments, "-o", "json", "--watch"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        deadline = Timer(seconds, process.terminate)
        deadline.daemon = True
        deadline.start()
        decoder, text = json.JSONDecoder(), ""
        assert process.stdout is not None
        try:
            for line in process.stdout:
                text += line
                if line.rstrip() != "}":  # an object ends with a brace in the first column
                    continue
                value, end = decoder.raw_decode(text)
                text = text[end:].lstrip()
                yield value
        finally:
            deadline.cancel()
            process.terminate()
            process.wait()
            process.stdout.close()

    @contextmanager
    def port_forward(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """The local address `http://127.0.0.1:N` that leads to `target` (`svc/name`) while this is open."""
        process = subprocess.Popen(
            [*self.prefix, "-n", namespace, "port-forward", "--address", "127.0.0.1", target, f":{port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", said)
            if not found:
                raise KubectlFailed(
                    f"kubectl port-forward {target}: {said.strip() or 'ended without a word'}"
                )
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def named(name: str) -> str:
    """The argument that narrows a watch to one object.

    A bare name would lose changes: kubectl then gets the object, opens a watch without the version that it
    got, and drops the first event as the one it has printed, whatever came between the two.
    """
    return f"--field-selector=metadata.name={name}"


def _object(text: str) -> Manifest:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def condition(model: Manifest, kind: str) -> Manifest:
    """The condition of that type, or `{}` where the operator has not written it."""
    conditions: Sequence[Manifest] = model.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def is_true(model: Manifest, kind: str) -> bool:
    return condition(model, kind).get("status") == "True"
