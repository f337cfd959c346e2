"""The torch engine: find and read checkpoints, run them behind `Runner`."""
