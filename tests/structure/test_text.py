"""The repository speaks of the project alone, and holds nothing unfinished."""

from __future__ import annotations

import re
from pathlib import Path

from tests.structure.sources import PACKAGES, ROOT

KINDS = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".sh"}
PLAIN = {"Makefile", ".gitignore", "run"}
FOLDERS = (*PACKAGES, "tests", "docs", ".ci")
# Written in parts, so that this file is not among its own findings.
PATTERNS = {
    "a path of one machine": r"(?<![\w./:{<-])/(?:ro" + r"ot|ho" + r"me|wo" + r"rk|Us" + r"ers|mnt|opt)/",
    "a path out of the repository": r"\.\./sha" + "red",
    "unfinished work": r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b",
    # torchao keeps whole methods under a module of that name.
    "a word of drafts": r"(?i)(?<!torchao\.)\bproto" + r"types?\b",
}
# CI fills the data directory from the place where it finds the data sets.
EXEMPT = {Path(".ci/run")}


def _texts() -> list[tuple[Path, str]]:
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    readable = [path for path in files if path.suffix in KINDS or path.name in PLAIN]
    return [(path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in readable]


def _findings(text: str) -> list[tuple[int, str]]:
    return [
        (number, what)
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in PATTERNS.items()
        if re.search(pattern, line)
    ]


def test_the_text_is_about_the_project() -> None:
    found = [
        f"{path}:{number}: {what}" for path, text in _texts() if path not in EXEMPT for number, what in _findings(text)
    ]
    assert not found, "\n".join(found)


def test_each_pattern_finds_its_case() -> None:
    cases = ["see /ho" + "me/me/x", "python ../sha" + "red/x.py", "# TO" + "DO later", "a proto" + "type of it"]
    assert [what for case in cases for _, what in _findings(case)] == list(PATTERNS)
    assert not _findings("GET /api/2.0/ho" + "me/x at https://host/ho" + "me/ and runs/wo" + "rk/1, a hacksaw")
