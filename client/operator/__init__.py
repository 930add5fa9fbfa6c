"""The decisions of a site's operator, and the facts on which they rest."""
