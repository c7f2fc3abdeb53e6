"""Checkpoints on this host: sealed, brought to safety, and chosen from.

staging     from what a trainer staged to a whole, sealed checkpoint
publisher   sealed → registered with the coordinator → copied to a store
removing    what the coordinator lets go, on this disk and in stores
resume      which checkpoint an attempt goes on from, its bytes verified
"""
