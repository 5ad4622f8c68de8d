"""One job on several devices: processes that share each batch."""
