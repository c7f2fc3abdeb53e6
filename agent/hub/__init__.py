"""What a run publishes on the Hugging Face Hub: its model for users and, if configured, its state for other hosts.

outputs      the publications of one attempt, as one value
publication  the newest checkpoint's model: at an interval, at the end and when the host leaves
state        every checkpoint's whole state, as one more copy
packing      the files, texts and picture of one publication; merging an adapter (in a process)
facts        what a model card says that only the coordinator knows
curve        the picture of the losses (in a process)

Nothing here holds up training: what goes wrong is an event of the run.
"""
