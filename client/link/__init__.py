"""A site's end of the link: how it comes in, dials, and follows its coordinators."""
