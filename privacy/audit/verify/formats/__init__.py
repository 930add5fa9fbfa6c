"""What stands in a bundle: read and verified one thing at a time, whatever stands around it."""
