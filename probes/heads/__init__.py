"""What attention heads look at and write."""
