"""What meets Flower: messages on the wire, and what every grid has in common."""
