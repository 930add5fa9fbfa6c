"""The coordinator's end of the link."""
