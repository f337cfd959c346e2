"""The onnxruntime engine: sessions, caches, and the Runner over an exported file."""
