"""Where checkpoints and results are kept so that the next host finds them: one small interface and its stores.

base            the interface of a store, the key of a folder, and the errors that a store raises
stores          opens the store that a uri names
address         uris of stores; layout: the paths of folders below a store's base, and the index at the base
folder          `file://`
bucket          `s3://`, `gs://`, `az://`; obstore_client: their clients and errors; upload: one file on its way there
hub             `hf://` and the publication of models on the Hugging Face Hub
download        files on their way to this host, every byte verified
throttling      how many files are in transfer at once, and at what rate
manifest        the files of a folder with their digests; loadable: those of them that a library loads
checkpoint_ref  which checkpoint of a run is meant: `RUN@STEP`, `RUN@latest`, `RUN@best`

`relay://`, the coordinator's own store, is reached through its owner's channel to the coordinator:
`agent.stores.relay`, `relayctl.client.artifacts`.
"""
