"""Physical removal of groups, and the proof that nothing else changed."""
