"""Reports on sets of images, PixMix, fractals, trainings and evaluations."""
