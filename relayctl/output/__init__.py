"""What relayctl prints: tables, curves, logs and machine-readable values."""
