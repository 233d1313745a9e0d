# SPDX-License-Identifier: Apache-2.0
"""Runs a page of the documentation: the commands of its `console` blocks, and what they must say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_HEREDOC = re.compile(r"<<\s*'?(\w+)'?\s*$")


class WentOtherwise(AssertionError):
    """A command of the page failed, or did not say what the page says."""


@dataclass(frozen=True)
class Command:
    """One command below a heading; `…` in an expected line stands for anything."""

    heading: str
    text: str
    expected: tuple[str, ...]


def commands(page: str) -> Iterator[Command]:
    """The commands of all console blocks, in their order."""
    heading, lines = "", iter(page.splitlines())
    for line in lines:
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if line == "```console":
            block: list[str] = []
            for inner in lines:
                if inner == "```":
                    break
                block.append(inner)
            yield from _of_block(heading, block)


def _of_block(heading: str, block: list[str]) -> Iterator[Command]:
    at = 0
    while at < len(block):
        if not block[at].startswith("$ "):
            raise ValueError(f"below {heading!r}: expected a command, found {block[at]!r}")
        text = [block[at].removeprefix("$ ")]
        at += 1
        end = _HEREDOC.search(text[0])
        while at < len(block) and (text[-1].endswith("\\") or (end is not None and text[-1] != end[1])):
            text.append(block[at])
            at += 1
        expected = []
        while at < len(block) and not block[at].startswith("$ "):
            expected.append(block[at])
            at += 1
        yield Command(heading, "\n".join(text), tuple(line for line in expected if line.strip()))


def walk(command: Command, folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    """Runs one command as a shell would; raises WentOtherwise."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise WentOtherwise(f"`{command.text}` ended with {done.returncode}:\n{done.stdout[-4000:]}")
    for line in command.expected:
        wanted = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(wanted.fullmatch(said.rstrip()) for said in done.stdout.splitlines()):
            raise WentOtherwise(f"`{command.text}` did not say {line!r}:\n{done.stdout[-4000:]}")
    return done.stdout
