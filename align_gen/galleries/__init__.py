"""Pictures on disk, the scores of them, and what changed between two sets of them."""
