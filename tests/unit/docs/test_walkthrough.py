# SPDX-License-Identifier: Apache-2.0
"""How pages are run, and that the page about the gap leaves no command out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.walkthrough import Command, WentOtherwise, commands, walk

ROOT = Path(__file__).resolve().parents[3]
PAGE = """
## One
```sh
not run
```
```console
$ cat >x <<END
$ no command
END
$ echo a \\
  b
a b
```
## Two
```console
$ false || echo "exit $?"
exit …
```
"""


def test_commands_come_with_their_heading_and_their_output() -> None:
    assert list(commands(PAGE)) == [
        Command("One", "cat >x <<END\n$ no command\nEND", ()),
        Command("One", "echo a \\\n  b", ("a b",)),
        Command("Two", 'false || echo "exit $?"', ("exit …",)),
    ]


def test_a_command_that_fails_or_says_something_else_stops_the_walk(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    for command in commands(PAGE):
        walk(command, tmp_path, environment, 20)
    assert (tmp_path / "x").read_text() == "$ no command\n"
    for text, expected in (("false", ()), ("true | false", ()), ("echo $unset", ()), ("echo b", ("a",))):
        with pytest.raises(WentOtherwise):
            walk(Command("", text, expected), tmp_path, environment, 20)


def test_the_page_about_the_gap_has_the_sections_that_the_journey_walks() -> None:
    found = list(commands((ROOT / "docs/airgap.md").read_text(encoding="utf-8")))
    walked = ["On the connected side", "On the way", "On the other side"]
    assert list(dict.fromkeys(command.heading for command in found)) == walked


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_page_about_the_gap_is_linked(page: str) -> None:
    assert "airgap.md)" in (ROOT / page).read_text(encoding="utf-8")
