"""`hf://`: the Hugging Face Hub, as a place for checkpoints and as where a run's model is published.

    HubStore, publications ──► Worker ──► a process of its own ──► Repository ──► the Hub

store       a run's whole trainer state on its branch, one commit each: the `Store` of `hf://` uris
worker      what is asked of the Hub, done in a process that can be killed at any moment and holds the token
jobs        what such a process can be asked; in it work:
repository  commits with a parent, lost replies looked up, space freed
fetching    folders brought here, every byte verified
client      the Hub's own client with timeouts, and its errors sorted; only these three know it
marks       how Relay's commits are told from each other and from everybody else's; whose turn it is (pure)
budget      how often a repository may be committed to (pure)
uris        names of branches and tags, and `hf://` uris (pure)

A commit names its parent, and the Hub refuses one whose parent is not the head any more: of two writers one is told.
The client retries no commit; whoever gets no answer looks in the history for a commit that carries the same mark
before trying again. So a publication is there once or not at all, whoever is killed when.

What this does not promise: the Hub cannot check leases. A host that has lost its lease may still commit on the run's
branch before it is told; nobody resumes from that, because only the registry's row names a commit, and rows are fenced.
"""
