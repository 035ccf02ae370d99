"""Measurements: what the README and the documents say in figures."""
