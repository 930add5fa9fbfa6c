"""Who belongs to a federation: members, their certificates and keys, and how they come in."""
