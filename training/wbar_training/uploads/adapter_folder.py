"""The folder of a LoRA adapter, as PEFT's `save_pretrained` has it: it can be merged with its like, and not trained."""

from wbar.errors import CorruptFile, UnknownArchitecture
from wbar_averaging.lora import CONFIG, refuse_other_kinds
from wbar_averaging.model_folder import UnfitConfig
from wbar_training.uploads.pretrained_config import Said
from wbar_training.uploads.transformers_folder import parsed


def said_in(config: bytes, any_network: bool) -> Said:
    """Return that it is an adapter. config: the content of `adapter_config.json`. any_network: it is taken for merging.

    Raises UnknownArchitecture where it is not, CorruptFile for a configuration that is no JSON object, or of an adapter that
    adds something else than B·A.
    """
    if not any_network:
        raise UnknownArchitecture(
            "the archive is a LoRA adapter, which is a part of a network: train the network that it belongs to with the "
            "adapter merged into it, or upload it with purpose=merge, to merge it with its like"
        )
    try:
        refuse_other_kinds(parsed(config, CONFIG), CONFIG)
    except UnfitConfig as error:
        raise CorruptFile(str(error)) from None
    return Said(adapter=True)
