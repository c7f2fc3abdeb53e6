"""Rewards: what a completion is worth, by functions of the user, of Relay or of a reward model."""
