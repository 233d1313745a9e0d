# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a cluster, the charts, one manifest, one answer. Exit 0 only if the answer came."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass

import httpx2
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from dev import stack
from dev.board import Board
from dev.kubectl import Kubectl, Manifest, condition, is_true, named

NAME = "tiny-moe"
QUESTION = "What is a mixture of experts?"
FOLLOWED = ("Mirrored", "Placed", "Distributed", "EgressSealed", "Serving", "Ready")
STAGES = ("Cluster", "Install", *FOLLOWED, "Answer")
PATIENCE = 20 * 60.0  # seconds until the demo gives up on a model that does not become Ready


class DemoFailed(RuntimeError):
    """The demo cannot go on; the text says what was seen and where to look."""


@dataclass(frozen=True)
class Answer:
    text: str
    model: str
    tokens: int


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="one manifest, one served model, one answer")
    parser.add_argument("--cluster", choices=("embedded", "kind", "current"), default="embedded")
    parser.add_argument("--down", action="store_true", help="end and remove what the demo started")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    console = Console(stderr=False)
    try:
        if arguments.down:
            return down(arguments.cluster, console)
        return up(arguments.cluster, console)
    except KeyboardInterrupt:
        console.print("Interrupted. `make demo` goes on from here, `make demo-down` removes everything.")
        return 130
    except (RuntimeError, subprocess.SubprocessError, httpx2.HTTPError, OSError) as error:
        console.print(f"[red]make demo failed:[/] {escape(str(error))}", soft_wrap=True)
        return 1


def up(kind: str, console: Console) -> int:
    board = Board(console, STAGES)
    with board.shown():
        with board.stage("Cluster"):
            target = stack.target(kind, lambda text: board.note("Cluster", text))
        with board.stage("Install"):
            installed = stack.install(target, lambda text: board.note("Install", text))
            manifest = stack.example(NAME, installed.images, installed.revisions["first"])
            installed.kubectl.apply(manifest)
        follow(board, installed.kubectl)
        with board.stage("Answer"):
            answer = ask(installed.kubectl, QUESTION)
            board.note("Answer", f"{answer.tokens} tokens")
    show(console, installed.kubectl, answer, target.kubeconfig_hint)
    return 0


def down(kind: str, console: Console) -> int:
    stack.remove(kind, lambda text: console.print(text, highlight=False))
    console.print("The demo's cluster and everything it started are gone.")
    return 0


def follow(board: Board, kubectl: Kubectl) -> None:
    """Show the model's conditions as they change; return when it is Ready."""
    board.start(FOLLOWED[0])
    model: Manifest = {}
    for model in kubectl.watch("-n", stack.MODELS, "smodel", named(NAME), seconds=PATIENCE):
        if model.get("status", {}).get("observedGeneration") != model["metadata"]["generation"]:
            continue
        for name in FOLLOWED:
            board.start(name)
            board.note(name, _detail(model, name))
            if not is_true(model, name):
                break
            board.finish(name)
        if is_true(model, "Stalled"):
            stalled = condition(model, "Stalled")
            raise DemoFailed(f"the model is stalled: {stalled['reason']}: {stalled['message']}")
        if is_true(model, "Ready"):
            return
    ready = condition(model, "Ready")
    raise DemoFailed(
        f"{NAME} was not Ready within {PATIENCE:.0f} s; its last word was "
        f"{ready.get('reason', 'nothing')}: {ready.get('message', 'no condition was written')}"
    )


def _detail(model: Manifest, name: str) -> str:
    status = model.get("status", {})
    stage = condition(model, name)
    if name == "Mirrored":
        if is_true(model, name) and "artifact" in status:
            artifact = status["artifact"]
            return f"{artifact['files']} files, {decimal(artifact['bytes'])}, {artifact['digest'][:19]}…"
        if progress := status.get("mirror"):
            done, total = progress.get("bytesDone", 0), progress.get("bytesTotal", 0)
            return f"{decimal(done)} of {decimal(total)}  {progress.get('file', '')}"
    if name == "Distributed" and (delivery := status.get("delivery")):
        ready, wanted = delivery.get("nodesReady", 0), delivery.get("nodesWanted", 0)
        done, total = delivery.get("bytesDone", 0), delivery.get("bytesTotal", 0)
        return f"{ready} of {wanted} nodes, {decimal(done)} of {decimal(total)}"
    if name == "Placed" and is_true(model, name):
        return str(status.get("placement", {}).get("why", ""))
    return str(stage.get("message") or stage.get("reason", ""))


def ask(kubectl: Kubectl, question: str, namespace: str = stack.MODELS, name: str = NAME) -> Answer:
    """One chat completion through the model's OpenAI endpoint, greedy."""
    with kubectl.port_forward(namespace, f"svc/{name}-serve-svc", 8000) as address:
        response = httpx2.post(
            f"{address}/v1/chat/completions",
            json={
                "model": name,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": 16,
            },
            timeout=120,
        )
    if response.status_code != 200:
        raise DemoFailed(f"the model answered {response.status_code}: {response.text[:300]}")
    body = response.json()
    return Answer(
        text=body["choices"][0]["message"]["content"],
        model=body["model"],
        tokens=body["usage"]["completion_tokens"],
    )


def show(console: Console, kubectl: Kubectl, answer: Answer, hint: str) -> None:
    """What a person wants to see at the end, in the words kubectl would use."""
    console.print()
    console.print(f"[bold]Q[/] {QUESTION}")
    console.print(f"[bold]A[/] {escape(repr(answer.text))}")
    console.print("[dim]  (random weights: the words mean nothing, the path to them is real)[/]")
    console.print()
    model = kubectl.get("-n", stack.MODELS, "smodel", NAME)
    console.print("$ kubectl get smodel -n models -o wide", style="bold", highlight=False)
    table = kubectl("-n", stack.MODELS, "get", "smodel", "-o", "wide")
    console.print(escape(table), highlight=False, soft_wrap=True)
    conditions = Table("Condition", "Status", "Reason", "Message", title=None, header_style="bold")
    for one in model["status"]["conditions"]:
        conditions.add_row(one["type"], one["status"], one["reason"], escape(one.get("message", "")))
    console.print(conditions)
    reach = (
        f"{hint}\n"
        f"kubectl -n {stack.MODELS} port-forward svc/{NAME}-serve-svc 8000:8000 &\n"
        f"curl -s http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'  -d \'{{"model": "{NAME}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    console.print(Panel(escape(reach), title="Reach it", title_align="left", expand=False))
    console.print("make demo-down removes everything again.", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dev")
    add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
