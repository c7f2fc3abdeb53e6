"""Services that run beside the calls: planning, lapsing, collecting. All replicas start them; one at a time works."""
