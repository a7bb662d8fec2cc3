"""What can be seen from outside: the log, the metrics, and traces."""
