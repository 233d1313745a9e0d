# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the switch that rewrites golden files instead of comparing with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "golden"

# Compares text with a file below tests/golden, or writes it there with --update-goldens.
Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens", action="store_true", help="rewrite tests/golden from what is rendered now"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden("rayservice/x.yaml", text)`: the text must be what the file holds."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"{path} is missing; look at what is rendered, then run with --update-goldens"
        assert text == path.read_text(encoding="utf-8"), (
            f"{path} differs; if it should, run with --update-goldens"
        )

    return compare
