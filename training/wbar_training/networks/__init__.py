"""Networks: catalog name -> module, recognition of a checkpoint, loading, fresh layers."""
