"""Reading uploads: checkpoint files and dataset archives. The training loop never imports this room."""
