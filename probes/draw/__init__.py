"""How results look. Takes arrays, labels and titles; knows no result."""
