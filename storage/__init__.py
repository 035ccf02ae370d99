"""Tasks and where they are kept. Knows neither providers nor gRPC."""
