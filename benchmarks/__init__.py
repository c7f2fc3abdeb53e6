"""What Relay costs and how fast it is: `python -m benchmarks`. See docs/benchmarks.md."""
