"""What really happens to brokers, networks and workers, done on purpose: `make chaos`."""
