"""What a researcher may do over the link."""
