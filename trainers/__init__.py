"""What trains: reads a run file, writes events and checkpoints, knows nothing of the network."""
