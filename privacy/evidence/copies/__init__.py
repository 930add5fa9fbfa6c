"""Encrypted copies of histories, from which a party that lost its own restores it."""
