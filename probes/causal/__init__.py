"""Change something inside the model and measure how the prediction changes."""
