"""What adds events up to an ε: no torch, no Flower."""
