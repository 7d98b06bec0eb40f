"""Benchmarks: a load and what came of it, the suite that measures this project beside its peers, and its report."""
