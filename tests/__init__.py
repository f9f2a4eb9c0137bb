"""Tests of geta; helpers of one area are imported as ``tests.<area>.<module>``."""
