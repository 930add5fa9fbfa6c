"""Connectors that read a site's records, read-only."""
