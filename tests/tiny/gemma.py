"""Gemma 2 as Sana and Lumina read it, over letters."""

from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """One token a character, after a first one."""
    letters = [chr(i) for i in range(33, 127)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", "\n", *letters]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], add_bos_token=True
    )


def gemma_model(tokenizer: GemmaTokenizer, width: int = 16) -> Gemma2Model:
    """A text encoder of two layers."""
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return Gemma2Model(config).eval()
