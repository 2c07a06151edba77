"""Benchmarks: ratios within one run, against the physical limit and against a peer. Never a test."""
