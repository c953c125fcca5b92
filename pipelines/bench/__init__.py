"""Benchmarks: our code beside reference implementations and rivals, as ratios within one run."""
