"""Every method that the engine is compared with, behind one contract (``baselines.base.Method``)."""
