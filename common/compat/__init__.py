"""Every use of a private part of a library: one module a library, each with a contract test.

A part is private if its name, or that of a module on the way to it, begins with ``_``, or if the
library's documentation does not name it. Each function says what it uses, since which version
that is there, and what a public way would cost. ``tests/compat`` holds what Privet relies on, and
``make compat`` runs it with the oldest and the newest versions that ``pyproject.toml`` allows.

Nothing is imported here: ``dp_accounting`` is in an auditor's install, the others are not.
"""
