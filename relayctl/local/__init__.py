"""Relay on one machine: a coordinator and agents as processes of their own."""
