"""The generation service: gRPC in front, the poller behind."""
