"""What the probes share: metrics, runs and their copies, places, statistics."""
