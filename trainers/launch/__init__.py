"""Starting the processes that train (ranks) and exchanging messages with them."""
