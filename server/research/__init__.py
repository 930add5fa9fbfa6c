"""Serve researchers over the link."""
