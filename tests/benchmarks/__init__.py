"""Step times, memory and capture times, each beside its bound: ``python -m tests.benchmarks --help``."""
