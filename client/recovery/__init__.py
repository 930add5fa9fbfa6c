"""Recover a site's lost ledger, and keep copies for others."""
