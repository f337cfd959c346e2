"""What the probes share: metrics, statistics, sweeps."""
