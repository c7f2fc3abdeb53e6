"""Checkpoints on this host: sealed, published, removed and chosen from.

staging     from what a trainer staged to a complete, sealed checkpoint
publisher   sealed, then registered with the coordinator, then copied to a store
removing    what the coordinator has scheduled for deletion, on this disk and in stores
resume      which checkpoint an attempt resumes from, with every byte verified
"""
