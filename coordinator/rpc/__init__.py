"""The gRPC services: each method parses a request, calls a command, and renders the result."""
