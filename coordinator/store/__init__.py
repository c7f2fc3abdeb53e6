"""SQL: free functions that take a connection and never commit."""
