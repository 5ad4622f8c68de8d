"""The HTTP interface: takes checkpoints, datasets and jobs, tells their state, hands out weights. Imports no torch."""
