"""Change something inside and see what becomes of the prediction."""
