"""What a run says: append-only files on this host, and their way to the coordinator, each byte once.

sources   the files and how far the coordinator has them
spool     the stream that brings them there
notice    how the spool learns that something was written
reports   what the trainer's own lines say that matters here: steps, checkpoints
journal   what the agent itself adds
"""
