"""Servers that a team shares: PostgreSQL and MLflow's server, without root rights, on the loopback address alone."""
