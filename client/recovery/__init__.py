"""How a site gets back what it lost, and keeps what others may lose."""
