"""Benchmarks: how fast steps, scoring and attention run on the machine at hand."""
