"""The generation service: gRPC in front, the poller behind."""

VERSION = "0.1.0"  # as in pyproject.toml, which the image does not contain
