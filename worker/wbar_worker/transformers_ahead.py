"""What reading a folder of transformers imports, imported once by an ingest worker's forkserver: a second of every such upload.

Whatever goes wrong here goes wrong again where it is needed, and is told there.
"""

import logging

try:
    import transformers.conversion_mapping
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto  # noqa: F401
except Exception:
    logging.getLogger("wbar.worker").debug("transformers is not loaded ahead", exc_info=True)
