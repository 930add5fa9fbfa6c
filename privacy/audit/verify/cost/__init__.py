"""What was released costs: plans, accountants, and the cap of a population."""
