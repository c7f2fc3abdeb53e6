"""This machine: a deployment of Relay as processes on it, and trainings without Relay in folders of it."""
