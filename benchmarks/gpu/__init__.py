"""What only a GPU can show, one part a module; each prints its results as JSON lines."""
