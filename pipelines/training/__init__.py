"""Training: recipes, checkpoints, and the loop that any number of processes run."""
