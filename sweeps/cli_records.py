"""``geta check-records``: reads every record again, and the tables that pages show of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ArtifactError, ConfigError
from orchestration.console import USER_ERROR, complain, guarded, write
from orchestration.files import write_text
from sweeps.command import read_line
from sweeps.pages import BLOCK, rewritten
from sweeps.records import FOLDER, check_records

HELP = """\
usage: geta check-records [FOLDER] [root=DIR] [--write]

Read every record below FOLDER (default docs/records) again: that it says configuration, command, commit, versions,
device, seed and seconds; that its numbers lie in their bounds and agree with each other; that the index names it. Then
make each table that README.md and docs/*.md show of records anew and compare it. A fault ends with exit code 2.

  root      folder of README.md and docs/ (default: this one)
  --write   rewrite the tables in the pages instead of complaining about them
"""


def main(arguments: Sequence[str]) -> int:
    """Check records and pages from the command line."""
    if any(each in ("-h", "--help") for each in arguments):
        write(HELP)
        return 0
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    given = read_line(arguments, ("--write",), {"root": (str, ".")})
    if len(given.names) > 1 or given.values:
        raise ConfigError([f"one folder may be named, but got {[*given.names, *given.values]}"])
    root = Path(given.own["root"])
    folder = Path(given.names[0]) if given.names else root / FOLDER
    if not folder.is_dir():
        raise ConfigError([f"the folder of records must exist, but {folder} does not; name it"])
    runs, faults = check_records(folder)
    tables = 0
    for page in pages(root):
        count, own = check_page(page, root, "--write" in given.flags)
        tables += count
        faults += own
    for fault in faults:
        complain(fault)
    write(f"{runs} runs and lines in {folder}, {tables} tables in pages: {len(faults)} faults")
    return USER_ERROR if faults else 0


def pages(root: Path) -> list[Path]:
    """Return the pages that may show records."""
    return [page for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if page.is_file()]


def check_page(page: Path, root: Path, rewrite: bool) -> tuple[int, list[str]]:
    """Compare the tables of a page with their records, or rewrite them.

    Returns:
        The number of tables, and the faults.
    """
    text = page.read_text(encoding="utf-8")
    count = len(BLOCK.findall(text))
    try:
        now = rewritten(text, root)
    except (ArtifactError, ConfigError, KeyError) as error:
        return count, [f"{page}: {error}"]
    if now == text:
        return count, []
    if rewrite:
        write_text(page, now)
        return count, []
    return count, [f"{page} must show what its records hold; rewrite its tables with: geta check-records --write"]
