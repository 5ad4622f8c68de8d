"""What the labels of a dataset mean: a class, several labels, a class for every pixel."""
