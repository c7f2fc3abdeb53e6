"""Where checkpoints and results are kept, so that the next host finds them: one small interface and its faces.

base        the interface, where things lie in a store, and what can go wrong there
opening     from a uri to its store
address     which uris name a store; layout: which folder of it is whose; index: its list of what was published
folder      `file://`; aside: folders in the making
bucket      `s3://`, `gs://`, `az://`; clients, sending, faults: what its client needs
arriving    files on their way here, every byte verified; streams, rate_limit: how many and how fast

`relay://`, the coordinator's own store, goes over its owner's line to the coordinator: `agent.stores.relay`,
`relayctl.client.artifacts`.
"""
