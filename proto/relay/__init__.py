"""What both ends of Relay share: the wire contract, its errors, the run file's format."""
