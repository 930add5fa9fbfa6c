"""Recover the files that a restored coordinator lacks."""
