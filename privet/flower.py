"""Where ``flwr run .`` finds the apps: a real file, because a bundle drops the links."""

import privet.simulations.app as _impl

server = _impl.server
client = _impl.client
