"""An exported file: names, metadata, weights, inspection. Imports no torch."""
