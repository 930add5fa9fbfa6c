"""The parts of a bundle: each is read and verified by itself, whatever surrounds it."""
