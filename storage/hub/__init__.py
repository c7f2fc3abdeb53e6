"""`hf://`: the Hugging Face Hub, as a store of checkpoints and as the place where a run's model is published.

    HubStore, publications ──► HubWorker ──► a process of its own ──► Repository ──► the Hub

store           the `Store` of `hf://` uris, on the run's branch; and the limit on commits per hour (pure)
worker          starts a process for each job, which can be killed at any moment and alone holds the token
jobs            the jobs of such a process, by name
repository      commits that name their parent, the lookup of lost replies, the deletion of what takes space
client          the Hub's client with timeouts, and its errors; only these last three import huggingface_hub
commit_markers  the marker that tells Relay's commits from others, and whether a commit may be made (pure)
uris            names of branches and tags, and `hf://` uris (pure)

A commit names its parent, and the Hub refuses a commit whose parent is not the head any more, so of two writers one is
refused. The client never retries a commit: a caller that got no reply looks for a commit with its marker in the history
before it tries again. So a publication is made once or not at all, whichever process is killed when.

The Hub cannot check leases. A host that has lost its lease may still commit to the run's branch before it learns of
that. Nobody resumes from such a commit, because only the registry's row names a commit, and rows are fenced.
"""
