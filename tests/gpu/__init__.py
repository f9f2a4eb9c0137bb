"""What only a GPU can show: ``pytest tests/gpu``, or ``python -m tests.gpu`` where pytest is not installed."""
