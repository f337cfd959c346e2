"""The files beside an exported model, for other libraries."""
