"""Starting a trainer's processes (ranks) and talking with them."""
