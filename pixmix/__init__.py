"""The PixMix transform; nothing is here yet."""
