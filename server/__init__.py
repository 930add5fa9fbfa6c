"""The coordinator signs orders, aggregates releases and keeps snapshots."""
