"""The coordinator's signed journal and the evidence that lets others check its runs."""
