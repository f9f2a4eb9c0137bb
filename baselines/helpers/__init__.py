"""Mathematics and machinery that several methods share; every part is tested against a reference."""
