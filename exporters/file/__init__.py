"""What an exported file is: names, metadata, weights, and how to read it. Imports no torch."""
