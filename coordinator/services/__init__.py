"""What runs for ever beside the calls: planning and lapsing. Every replica starts them; one at a time works."""
