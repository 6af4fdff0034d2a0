"""The README's examples, run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from conftest import PHI3_TINY, run

README = Path(__file__).resolve().parents[1] / "README.md"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "smq-convert --mbits 5 --target all tests/fixtures/phi3-tiny phi3.smq"
    assert f"    {command}\n" in README.read_text()
    run("smq-convert", "--mbits", "5", "--target", "all", PHI3_TINY, "phi3.smq")
    flags = doctest.REPORT_NDIFF
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=flags)
    assert failed == 0
    assert tried > 20
