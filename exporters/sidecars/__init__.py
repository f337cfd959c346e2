"""The small files beside a model."""
