"""Sets of pictures on disk: made by any number of processes, checked, made again."""
