"""The list of seeded bugs is in order: every bug applies to the code as it is, and the tests that it names exist."""

from __future__ import annotations

import re

from mutants.bug import ROOT, all_bugs

BUGS = all_bugs()


def test_every_bug_still_applies() -> None:
    for bug in BUGS:
        assert bug.applied((ROOT / bug.file).read_text()) != (ROOT / bug.file).read_text(), bug.id


def test_the_tests_of_every_bug_exist() -> None:
    for bug in BUGS:
        assert bug.test_files(), bug.id
        for word in bug.tests.split():
            path, _, name = word.partition("::")
            text = (ROOT / path).read_text() if word.startswith("tests/") else ""
            assert not word.startswith("tests/") or re.search(rf"^def {name.partition('[')[0]}", text, re.M), (
                bug.id,
                word,
            )


def test_the_list_is_as_long_as_promised() -> None:
    assert len(BUGS) >= 110
    assert sum(bug.file.startswith("csrc/") for bug in BUGS) >= 20
