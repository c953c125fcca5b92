"""What a set is worth, as numbers, sheets and tables."""
