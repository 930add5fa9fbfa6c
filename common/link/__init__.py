"""The link between a site and its coordinator, as both ends see it."""

from privet.common.link import identity  # sets the suites of TLS, before gRPC reads them

__all__ = ["identity"]
