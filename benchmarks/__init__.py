"""Benchmarks that compare implementations in the same run and report ratios."""
