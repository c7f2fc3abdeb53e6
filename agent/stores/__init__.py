"""`relay://` as agents reach it, over their line to the coordinator. Stores that need none: `relay.stores`."""
