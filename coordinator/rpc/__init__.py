"""The gRPC face: servicers that read a request, call a command, and render what comes back."""
