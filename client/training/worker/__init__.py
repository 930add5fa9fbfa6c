"""Run the trainer in a process of its own: no keys, no network, warm between orders.

::

    endpoint (link, keys, ledger)             worker (model, records, GPU)
      RemoteTrainer ── Pipe: JSON + flat stream ──► Trainer
                                                     under confine(): no socket can be made,
                                                     the folders of keys cannot be opened
"""
