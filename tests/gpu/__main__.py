"""``python -m tests.gpu [part of a check's name]``: the checks with torch, numpy, scipy and safetensors alone."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence

import torch

from tests.gpu.checks import CHECKS


def main(given: Sequence[str] | None = None) -> int:
    """Run the checks whose name contains one of the words, or all; return 1 if one fails."""
    words = list(sys.argv[1:] if given is None else given)
    if not torch.cuda.is_available():
        sys.stdout.write("SKIP: torch sees no CUDA device\n")
        return 0
    sys.stdout.write(f"torch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    failed = 0
    for name, check in CHECKS.items():
        if words and not any(word in name for word in words):
            continue
        started = time.perf_counter()
        try:
            verdict, text = "PASS", check()
        except AssertionError as error:
            verdict, text = "FAIL", str(error)
        except Exception:  # noqa: BLE001 - one broken check must not hide the others
            verdict, text = "FAIL", traceback.format_exc()
        failed += verdict == "FAIL"
        sys.stdout.write(f"{verdict} {name} ({time.perf_counter() - started:.1f} s): {text}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
