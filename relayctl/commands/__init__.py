"""The commands of relayctl, one module each."""
