"""What a site's operator decides, sees and changes."""
