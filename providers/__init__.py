"""Where tasks are generated. Knows neither storage nor gRPC."""
