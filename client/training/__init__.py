"""Training at a site: the trainer, its process, and its protocol."""
