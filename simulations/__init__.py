"""A whole federation on one machine, by the same client and server code."""
