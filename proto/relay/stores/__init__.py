"""Where checkpoints and results are kept, so that the next host finds them: one small interface and its faces.

base        the interface, where things lie in a store, and what can go wrong there

`relay://`, the coordinator's own store, goes over its owner's line to the coordinator: `agent.stores.relay`,
`relayctl.artifacts`.
"""
