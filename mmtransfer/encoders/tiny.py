"""Real transformers classes at small sizes, built from a config: for offline use and demos."""

from __future__ import annotations

from transformers import (
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from mmtransfer.encoders.huggingface import HuggingFaceEncoder
from mmtransfer.encoders.numbers import check_count
from mmtransfer.registry import register_encoder

# At these widths the usual 0.02 leaves attention almost uniform, and training stalls.
INITIALIZER_RANGE = 0.1
HEADS = 4


@register_encoder("tiny-vit")
def tiny_vit(
    size: int = 32, patch: int = 8, width: int = 64, layers: int = 3, pool: str = "none"
) -> HuggingFaceEncoder:
    """A small ViT with random weights, for images (Dosovitskiy et al., 2021)."""
    check(width, layers, size=size, patch=patch)
    if patch > size:
        raise ValueError(f"patch must be at most size, {size}, found {patch}")
    config = ViTConfig(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIALIZER_RANGE,
    )
    processor = ViTImageProcessor(size={"height": size, "width": size})
    return HuggingFaceEncoder(ViTModel(config, add_pooling_layer=False), processor, pool)


@register_encoder("tiny-bert")
def tiny_bert(
    width: int = 64, layers: int = 2, max_tokens: int = 96, pool: str = "none"
) -> HuggingFaceEncoder:
    """A small BERT over bytes with random weights, for texts (Devlin et al., 2019)."""
    check(width, layers, max_tokens=max_tokens)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=INITIALIZER_RANGE,
    )
    model = BertModel(config, add_pooling_layer=False)
    return HuggingFaceEncoder(model, tokenizer, pool, max_tokens=max_tokens)


@register_encoder("tiny-wav2vec2")
def tiny_wav2vec2(width: int = 64, layers: int = 2, pool: str = "none") -> HuggingFaceEncoder:
    """A small wav2vec 2.0 with random weights, for 16 kHz sound (Baevski et al., 2020)."""
    check(width, layers)
    config = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        conv_dim=(32, 64, 64),
        conv_kernel=(80, 4, 4),
        conv_stride=(40, 4, 2),
        feat_extract_norm="layer",  # per frame: padding cannot change a clip's features
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        initializer_range=INITIALIZER_RANGE,
    )
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return HuggingFaceEncoder(Wav2Vec2Model(config), processor, pool)


def check(width: int, layers: int, **sizes: int) -> None:
    """Raise `ValueError` unless all are above zero and heads can share the width."""
    for name, value in {"width": width, "layers": layers, **sizes}.items():
        check_count(name, value)
    if width % HEADS:
        raise ValueError(f"width must be a multiple of {HEADS}, found {width}")
