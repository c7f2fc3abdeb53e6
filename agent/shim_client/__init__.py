"""The agent's side of the shims: starting them, talking to them, and reaping what they leave behind."""
