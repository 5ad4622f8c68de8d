"""The pages of README.md and docs/: they hang together, and what they show is run."""
