"""Benchmarks: ratios measured in one run; not collected by pytest."""
