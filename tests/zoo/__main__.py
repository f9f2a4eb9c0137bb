"""``python -m tests.zoo``: check every family in a process of its own, and write the table."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Read by torch and by transformers when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from orchestration.records import code_state
from tests import torchvision_operators
from tests.zoo.families import every
from tests.zoo.family import Family

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "records" / "architectures.jsonl"
TIMEOUT = 300
"""Seconds of CPU time that one family may take."""
WAIT = 10
"""Seconds on the clock per second of CPU time before a family is given up, however busy the machine is."""


def run_one(family: Family, timeout: int) -> dict[str, Any]:
    """Check one family in a forked process, which holds the packages already."""
    from tests.zoo.check import Verdict

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_child, args=(family, sender, timeout))
    process.start()
    sender.close()
    try:
        if receiver.poll(WAIT * timeout):
            found: dict[str, Any] = receiver.recv()
            return found
        reason = f"no answer within {WAIT * timeout} s"
    except EOFError:
        process.join()
        slow = process.exitcode == -signal.SIGXCPU
        reason = f"no answer within {timeout} s of CPU time" if slow else f"ended with exit code {process.exitcode}"
    finally:
        process.join(2)
        if process.is_alive():
            process.kill()
        process.join()
    seconds = time.perf_counter() - start
    return Verdict(family.name, family.kind, stage="process", reason=reason, seconds=seconds).json()


def _child(family: Family, pipe: Connection, timeout: int) -> None:
    from tests.zoo.check import check

    resource.setrlimit(resource.RLIMIT_CPU, (timeout, timeout + 5))
    pipe.send(check(family).json())
    pipe.close()


def warm_up(chosen: Sequence[Family]) -> None:
    """Import here, once, what building and export import when they are first used; the children inherit it."""
    torchvision_operators.install()
    for package in ("torch", "tests.zoo.check", *sorted({need for family in chosen for need in family.needs})):
        importlib.import_module(package)
    import torch
    from torch import nn

    from tests.zoo.check import check

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    for family in {family.needs: family for family in chosen}.values():
        family.build()
    verdict = check(Family("warm-up", net, lambda batch, length: torch.randn(batch, 4)))
    if verdict.verdict != "passed":
        raise RuntimeError(f"the smallest net of all does not pass: {verdict.reason}")


def known(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of each family in a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record["family"]: record for record in map(json.loads, lines)}


def check_all(chosen: Sequence[Family], path: Path, timeout: int) -> None:
    """Check families one by one, and append a record each."""
    if not chosen:
        return
    warm_up(chosen)
    state = code_state() or {"commit": "unknown", "modified": True}
    for family in chosen:
        record = run_one(family, timeout)
        record["commit"] = state["commit"][:12] + ("+" if state["modified"] else "")
        if trace := record.pop("trace"):
            print(trace, file=sys.stderr)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        text = f"{record['verdict']:8} {record['family']:42} {record['seconds']:5.1f} s"
        print(f"{text}  {record['stage']} {record['reason'][:200]}".rstrip(), flush=True)


def absent(family: Family) -> dict[str, Any]:
    """What stands for a family that was not run: a failure, so that it stays in the denominator."""
    from tests.zoo.check import Verdict
    from tests.zoo.table import IDLE

    return Verdict(family.name, family.kind, stage=IDLE, reason=IDLE).json()


def write_table(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the document of all records."""
    from tests.zoo.check import EXACT, SHARE, VISIBLE
    from tests.zoo.table import document

    text = document(records, exact=EXACT, share=SHARE, visible=VISIBLE, timeout=TIMEOUT)
    path.write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument(
        "--only", default="", help="names, or beginnings of names, in the order to check them, comma-separated"
    )
    parser.add_argument("--list", action="store_true", help="print the families and end")
    parser.add_argument("--json", type=Path, default=RECORDS, help="one line per family, written as it goes")
    parser.add_argument("--resume", action="store_true", help="keep that file, and skip the families that passed in it")
    parser.add_argument("--out", type=Path, help="write the table of all records there")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds of CPU time per family")
    return parser.parse_args()


def main() -> int:
    """Run; the exit code is 1 if a family gave a wrong answer or none."""
    arguments = _arguments()
    families = every()
    beginnings = arguments.only.split(",")
    named = [family for start in beginnings for family in families.values() if family.name.startswith(start)]
    chosen = list(dict.fromkeys(named))
    if arguments.list:
        print(*(family.name for family in chosen), sep="\n")
        return 0
    if not arguments.resume:
        arguments.json.write_text("", encoding="utf-8")
    passed = {name for name, record in known(arguments.json).items() if record["verdict"] == "passed"}
    check_all([family for family in chosen if family.name not in passed], arguments.json, arguments.timeout)
    records = known(arguments.json)
    ordered = [records.get(name) or absent(family) for name, family in families.items()]
    if arguments.out is not None:
        write_table(arguments.out, ordered)
    counts = {word: sum(record["verdict"] == word for record in ordered) for word in ("passed", "refused", "FAILED")}
    print(", ".join(f"{count} {word}" for word, count in counts.items()), f"of {len(families)} families")
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
