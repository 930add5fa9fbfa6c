"""The output of a process: log lines, the operator's own log, metrics."""
