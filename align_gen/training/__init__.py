"""A recipe made ready, run, measured and kept."""
