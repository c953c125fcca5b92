"""Sets of images on disk: made by any number of processes, checked, made again."""
