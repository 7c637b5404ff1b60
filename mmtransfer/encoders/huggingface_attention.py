"""Attention of transformers models that does not wait for the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "mmtransfer_sdpa"


def whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of scaled dot product attention, also where all tokens turn out to be real.

    By itself transformers reads the mask to leave it out then, so the host waits in every step.
    """
    if kwargs.get("attention_mask") is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, whole_mask)


def attend_without_waiting(model: Any) -> None:
    """Change the attention of a model that has scaled dot product attention."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
