"""What a process writes: lines of its log, the operator's own log, metrics."""
