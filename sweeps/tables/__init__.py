"""Published tables as data, beside what is measured here."""

from sweeps.tables.table import Table

__all__ = ["Table"]
