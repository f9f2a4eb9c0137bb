"""``python -m tests.shipping --out FILE``: the record of what is shipped, for five nets or those named."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.shipping.ship import NETS, record

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.shipping")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(record(given.nets.split(","), Path(folder)), indent=1) + "\n"
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
