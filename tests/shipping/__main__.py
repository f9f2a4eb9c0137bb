"""``python -m tests.shipping --out FILE``: the record of what is shipped, for five nets or those named.

A net that the file holds already, of the same commit and settings, is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestration.files import write_text
from orchestration.records import code_state
from tests.benchmarks.origin import origin
from tests.shipping.ship import NETS, record, settings


def done(entry: dict[str, Any] | None, net: str) -> bool:
    """Whether a net's entry is of this code and these settings."""
    if entry is None or entry["settings"] != settings(net):
        return False
    code = code_state()
    return code is not None and not code["modified"] and entry["environment"]["code"] == code


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.shipping")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.out.read_text(encoding="utf-8"))["nets"] if given.out.is_file() else {}
    for net in given.nets.split(","):
        if not done(found.get(net), net):
            with tempfile.TemporaryDirectory() as folder:
                found[net] = record(net, Path(folder))
            nets = {name: found[name] for name in NETS if name in found}
            write_text(given.out, json.dumps({"environment": origin(), "nets": nets}, indent=1) + "\n")
        sys.stdout.write(json.dumps({net: found[net]}, indent=1) + "\n")
