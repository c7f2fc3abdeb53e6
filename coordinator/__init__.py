"""The coordinator: decides which agent holds which run, and remembers everything."""
