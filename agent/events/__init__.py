"""What a run reports: append-only files on this host, and how they reach the coordinator, each byte once.

sources   the files, and how much of each the coordinator has
spool     the stream that sends them
inotify   how the spool learns that something was written
reports   what the trainer's lines say that its host acts on: steps and checkpoints
journal   the lines that the agent itself adds
"""
