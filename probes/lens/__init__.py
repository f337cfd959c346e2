"""What the residual stream says about the next token, layer by layer."""
