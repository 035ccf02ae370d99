"""Modules that hide packages which the image does not have."""
