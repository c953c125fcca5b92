"""From shards to batches: plans, decoding, mixing sets and the loaders."""
