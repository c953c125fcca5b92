"""Benchmarks that compare this project with plain implementations and other programs, as ratios."""
