"""What runs how fast on the machine at hand."""
