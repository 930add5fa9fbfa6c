"""Evidence for auditors: verification now, bundles and reports beside it."""
