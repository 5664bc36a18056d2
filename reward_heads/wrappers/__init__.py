"""Heads made of other heads."""
