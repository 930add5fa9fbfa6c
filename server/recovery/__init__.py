"""How a coordinator that was restored gets back what it lacks."""
