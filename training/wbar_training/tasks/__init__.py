"""The meanings of a dataset's labels: a class, several labels, a class for every pixel, boxes."""
