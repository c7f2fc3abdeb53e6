"""The operator's command line and the Python client."""
