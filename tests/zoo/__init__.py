"""The zoo: small models of every architecture at hand, pruned and proved one by one."""
