"""The programs at a SuperNode that Privet replaces, and the four functions of one of them.

No public interface of Flower runs an app that is installed at the site in place of the bundle that
the coordinator sends. The public way would be a SuperNode of Privet's own, or none: the link.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

from privet.common.errors import RunError

KNOWN = ("1.41.0",)
"""Versions of Flower whose ``flwr-clientapp`` was read, and met a hostile bundle in a whole run."""
PROGRAM = "flwr.supernode.runtime.run_clientapp"
"""The module of Flower's that :func:`installed_only` changes."""
OWN = "flwr-clientapp"
REFUSED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
"""What else SuperExec may be told to start; it finds all of them by name, on the PATH."""
SUPERNODE = "flower-supernode"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""No telemetry, no update check, nothing installed while a run runs."""


def run_installed(app: Callable[..., Any]) -> None:
    """Answer one message by ``app``; the arguments are those that SuperExec gave this process.

    Raises:
        RunError: if this Flower was not read, or is not what was read.
    """
    require_known(version("flwr"))
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    installed_only(run_clientapp, app)
    flwr_clientapp()


def require_known(found: str) -> None:
    """Refuse a Flower whose program was not read.

    Raises:
        RunError: saying which one to install.
    """
    if found not in KNOWN:
        raise RunError(
            f"Flower {found} is installed. That its flwr-clientapp can be kept from running a "
            f"bundle was checked for {', '.join(KNOWN)} only; install flwr=={KNOWN[-1]}"
        )


def installed_only(program: ModuleType, app: Callable[..., Any]) -> None:
    """Change Flower's program so that it runs ``app``, whatever bundle came.

    Args:
        program: Flower's module :data:`PROGRAM`.
        app: answers a message.

    Raises:
        RunError: if a function that is to be replaced is not there.
    """
    from flwr.supercore.fab import Fab

    pull = getattr(program, "pull_task_input", None)

    def pull_without_bundle(client: Any) -> tuple[Any, Any, Any, Fab]:
        message, context, run, fab = pull(client)  # type: ignore[misc]
        return message, context, run, Fab(fab.hash_str, b"", {})

    instead: dict[str, Callable[..., Any]] = {
        "pull_task_input": pull_without_bundle,
        "install_from_fab": lambda content, **how: None,
        "install_app_dependencies": lambda path, **how: None,
        "get_load_client_app_fn": lambda **how: lambda *which: app,
    }
    for name, function in instead.items():
        if not callable(getattr(program, name, None)):
            raise RunError(
                f"{program.__name__} has no '{name}': this is not the Flower that was read"
            )
        setattr(program, name, function)
