"""Models: resolved on the Hub, loaded, merged, and generated from."""
