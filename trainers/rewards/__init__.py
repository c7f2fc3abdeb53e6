"""Rewards of completions: functions of the user, functions with a name, and reward models."""
