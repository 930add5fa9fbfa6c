"""The border to Flower: messages on the wire, and the common part of all grids."""
