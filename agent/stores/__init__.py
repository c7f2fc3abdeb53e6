"""`relay://` as agents reach it, over their line to the coordinator. The stores that need no such line: `relay.stores`."""
