"""Tests of the repository itself: layering, sizes, public names, what is shipped."""
