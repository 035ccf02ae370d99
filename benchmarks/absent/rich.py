"""Hides a package that is not in the image, and that structlog would load: it takes 3 MiB."""

raise ImportError("the service runs with the packages of requirements.lock, as in the image")
