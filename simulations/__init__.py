"""Run a whole federation on one machine, with the client and server code of a real one."""
