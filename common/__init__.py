"""What client and server share: errors, plans, orders, wire formats, models and tasks."""
