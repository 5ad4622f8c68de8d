"""What only a GPU shows: exactness on device memory, every precision, bits after a kill, the worker beside a real card."""
