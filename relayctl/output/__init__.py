"""What relayctl prints: tables, curves, plans, and output for programs."""
