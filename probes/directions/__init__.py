"""Directions in activation space, and linear probes."""
