"""The trainers: they read a run file, train, and write events and checkpoints. They know nothing of the network."""
