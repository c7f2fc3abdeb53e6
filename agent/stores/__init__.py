"""Stores as agents use them. Those that need no line to the coordinator: `storage`.

relay, blobs   `relay://`, over the agent's line to the coordinator
publishing     what one attempt publishes, to the store that its run file names
patience       waiting for a store that is away
transfers      how far uploads are
"""
