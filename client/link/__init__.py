"""A site's end of the link: how it enrols, connects, and follows its coordinators."""
