"""Shards, the other datasets on disk, and the stores that they are written to and read from."""
