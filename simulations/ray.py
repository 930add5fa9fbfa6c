"""The same two apps through Flower's own simulation engine on Ray."""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from privet.common.errors import InputError, PrivetError, RunError


def run_on_ray(server: ServerApp, client: ClientApp, sites: int, address: str | None) -> None:
    """Run both apps on Ray: a local cluster, or the one at ``address``.

    Raises:
        InputError: if Ray is not installed.
        RunError: if the engine fails.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install 'privet[simulation]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.simulation import run_simulation

    init: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    if address is not None:
        init["address"] = address
    else:
        # "local": never join a cluster that happens to run on this machine.
        init |= {"address": "local", "num_cpus": os.cpu_count() or 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run_simulation(
                server,
                client,
                sites,
                backend_config={
                    "init_args": init,
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        except PrivetError:
            raise
        except Exception as error:
            raise RunError(f"Flower's Ray engine failed: {error}") from error
        finally:
            _stop_ray(address)


def _stop_ray(address: str | None) -> None:
    import ray

    if address is None and ray.is_initialized():
        ray.shutdown()
