"""The coordinator: sends orders, adds releases, keeps snapshots."""
