"""How a plan is trained where it says nothing of it.

::

    a plan's file ─ Plan.load ─ Plan.parse ─ fill ─ the plan, with each chosen value and its reason
                                              │
                       facts: what is public of task, model, sites and privacy
                       rules: a value and a reason for each key that was left out

No record is read: the same file gives the same plan on each machine (H2, H12).
"""
