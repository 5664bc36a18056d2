"""Qwen's tokenizer, and the size of the tiny language models that read it."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LANGUAGE_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": None,
}


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer over bytes: one token each, as there are no merges."""
    ends = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = {token: i for i, token in enumerate((*sorted(ByteLevel.alphabet()), *ends))}
    return Qwen2Tokenizer(
        vocabulary,
        [],
        additional_special_tokens=list(ends[1:]),
        model_max_length=1024,
        chat_template=CHAT,
    )
