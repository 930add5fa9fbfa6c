"""What must agree: the state machines of a ledger and of the journal."""
