"""The coordinator: decides which agent holds which run, and stores everything that must not be lost."""
