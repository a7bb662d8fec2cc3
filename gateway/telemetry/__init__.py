"""What operators see of the gateway: the log, the metrics, and traces."""
