"""Where tasks are generated: providers know neither storage nor gRPC."""
