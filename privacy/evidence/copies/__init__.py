"""Sealed copies of histories, by which a party that lost its own gets it back."""
