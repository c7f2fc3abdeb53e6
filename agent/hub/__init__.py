"""A run on the Hugging Face Hub: its model for people, and where that is wished its whole state for other hosts.

publication  the newest checkpoint's model, every so often, at the end and on leaving
state        every checkpoint's whole state, as one more copy
model        which files of a checkpoint can be loaded; merging an adapter (in a process)
packing      what one publication holds
card         the model card and `relay.json` (pure)
facts        what they tell: from the run file, the attempt's events and the coordinator
curve        the picture of the losses (in a process)
patience     how long a Hub that is away is waited for (pure)
opening      from a run file and an agent's settings (`means`) to all of these

Nothing here touches training: what goes wrong is an event of the run.
"""
