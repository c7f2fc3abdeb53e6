"""The agent: one per host; holds leases, starts trainers, carries their events and checkpoints."""
