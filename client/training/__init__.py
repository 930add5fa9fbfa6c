"""What computes at a site: the trainer, its process, and what the site asks of it."""
