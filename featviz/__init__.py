"""Feature visualizations for mixing sets; nothing is here yet."""
