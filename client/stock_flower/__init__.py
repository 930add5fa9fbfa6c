"""A site on stock Flower: the app that is installed there, and the launcher that loads it."""
