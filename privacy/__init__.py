"""The privacy engine and its accounting: events, ledgers, sampling, clipping, noise."""
