"""Step times, memory and capture times, each beside its bound: ``python -m tests.benchmarks --help``."""

import os

# Read when torch is imported: the profiler is not to print a line at each start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
