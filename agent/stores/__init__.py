"""Where checkpoints and results are put so that the next host can find them."""
