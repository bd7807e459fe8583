"""Names of weights: those that a model's files have, and those that its modules have.

A mixture of experts is stored expert by expert and computed with all at once, GPT-NeoX stores its head under another
name, old files of GPT-2 lack a prefix, and of tied weights a file has either. The conversion is transformers' own.

Guarantees: what is published has the names of the files that the model was opened from, as far as these hold it, so
that whoever opens the one opens the other; converting there and back changes no number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NO_WEIGHTS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")


def is_weight(name: str) -> bool:
    """Whether a tensor of a file is a weight; older files hold masks and frequencies too, which are computed today."""
    return not _NO_WEIGHTS.search(name)


def file_state(model: Any, stored: Collection[str] = ()) -> dict[str, Tensor]:
    """The state of a transformers model by the names of its files, of which `stored` are known; tied weights once.

    What differs by its name alone is not copied; experts that are stored one by one are.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state: dict[str, Tensor] = model.state_dict()
    if _is_converted(model):
        state = revert_weight_conversion(model, state)
    prefix = f"{model.base_model_prefix}."
    named = {}
    for name, tensor in state.items():
        short = name.removeprefix(prefix)
        named[short if short in stored and name not in stored else name] = tensor
    # Of tied weights the one that the files have.
    first, seen = sorted(named, key=lambda name: name not in stored), set()
    kept = {}
    for name in first:
        identity = (named[name].data_ptr(), tuple(named[name].shape), named[name].stride())
        if named[name].numel() == 0 or identity not in seen:
            kept[name] = named[name]
        seen.add(identity)
    return kept


def module_state(model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of files by the names of the modules of a model, which is not touched.

    What the model does not have keeps its name; what the files lack is not there.
    """
    own = model.state_dict().keys()
    if not _is_converted(model) and all(name in own for name in tensors if is_weight(name)):
        return tensors
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    given = {name: tensor for name, tensor in tensors.items() if is_weight(name)}
    if not given:
        return given
    # All of one type, the widest: the conversion stacks tensors, and casts to the type of what it fills.
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in given.values()})
    with torch.device("meta"):
        twin = type(model)(model.config).to(dtype)
    loading = LoadStateDictConfig(weight_mapping=get_model_conversion_mapping(twin), dtype=dtype)
    info, _ = convert_and_load_state_dict_in_model(model=twin, state_dict=given, load_config=loading)
    found = {name: tensor for name, tensor in twin.state_dict().items() if not tensor.is_meta}
    return found | {name: given.get(name, torch.empty(0)) for name in info.unexpected_keys}


def _is_converted(model: Any) -> bool:
    """Whether transformers stores a model in another form than it computes with."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    used = getattr(model, "_weight_conversions", None)
    return bool(get_model_conversion_mapping(model, add_legacy=False) if used is None else used)
