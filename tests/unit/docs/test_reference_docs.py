# SPDX-License-Identifier: Apache-2.0
"""The reference is complete, and no page points to a file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev import reference_docs
from sovereign_operator import reasons

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "charts").rglob("*.md"),
        *ROOT.glob("images/*.md"),
    ]
)


def test_every_reason_and_event_is_documented() -> None:
    documented = {word.word for word in reference_docs.words(reference_docs.REASONS.read_text())}
    defined = {value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)}
    assert defined - documented == set(reasons.CONDITION_TYPES) - documented


def test_a_reason_without_its_scenario_is_an_error() -> None:
    source = '# --- Placed ---\n# One.\nONE: Final = "One"\n\nTWO: Final = "Two"\n'
    with pytest.raises(reference_docs.Undocumented, match="TWO"):
        list(reference_docs.words(source))


def test_a_comment_holds_for_the_constants_directly_below_it() -> None:
    source = '# --- Placed ---\n# Both\n# of them.\nONE: Final = "One"\nTWO: Final = "Two"  # noqa: S105\n'
    assert [(w.section, w.word, w.meaning) for w in reference_docs.words(source)] == [
        ("Placed", "One", "Both of them."),
        ("Placed", "Two", "Both of them."),
    ]


def test_stale_pages_fail_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference_docs, "ROOT", tmp_path)
    monkeypatch.setattr(reference_docs, "TARGET", tmp_path / "reference")
    assert reference_docs.main(["--check"]) == 1
    assert "conditions.md is out of date" in capsys.readouterr().err
    assert reference_docs.main([]) == 0
    assert reference_docs.main(["--check"]) == 0


def test_tables_stay_tables() -> None:
    """A cell with a bar or a line break would tear its row apart."""
    for text in reference_docs.pages().values():
        columns = 0
        for line in text.splitlines():
            if line.startswith("|"):
                found = len(re.findall(r"(?<!\\)\|", line))
                assert columns in (0, found), line
                columns = found
            else:
                columns = 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
