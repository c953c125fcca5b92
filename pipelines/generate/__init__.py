"""Generate datasets of images in any number of processes, verify them, and repair them."""
