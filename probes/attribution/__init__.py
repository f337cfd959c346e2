"""Which parts of the model, or of the prompt, a logit comes from."""
