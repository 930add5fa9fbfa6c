"""A site admits orders, trains under differential privacy, charges its ledger, and releases."""
