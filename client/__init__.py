"""A site: admits orders, trains under differential privacy, pays, releases."""
