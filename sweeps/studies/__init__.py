"""Studies: many runs under one coordinator, with a declared budget, that survive the death of any process."""
