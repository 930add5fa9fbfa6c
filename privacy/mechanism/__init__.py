"""What makes noise: sampling, clipping, noise, and the tests of them before a run. Needs torch."""
