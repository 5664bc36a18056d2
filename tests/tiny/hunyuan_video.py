"""A tiny HunyuanVideo, and a tokenizer for which the words around every prompt have their published
length.
"""

import re

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from .parts import clip_text_model, clip_tokenizer

SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WORD = r"\w+|[^\w ]"


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the template, which are 95 before the prompt, and one a letter
    elsewhere.
    """
    before = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    words = sorted(
        {word for word in re.findall(WORD, re.sub(r"<\|\w+\|>", " ", before)) if len(word) > 1}
    )
    letters = ["\n", *(chr(i) for i in range(33, 127))]
    pieces = [
        ("<unk>", -99.0),
        *((word, -1.0) for word in words),
        *((letter, -9.0) for letter in letters),
    ]
    made = Tokenizer(Unigram(pieces, unk_id=0))
    made.pre_tokenizer = Split(Regex(WORD), "removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        additional_special_tokens=SPECIAL,
        padding_side="right",
    )
    assert len(tokenizer.tokenize(before)) == DEFAULT_PROMPT_TEMPLATE["crop_start"]
    return tokenizer


def hunyuan_video(seed: int = 0, guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    """Latents (4, 2, 4, 8) of 5 frames of 16 x 32; both text encoders, embedded guidance or
    none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, clip_words = llama_tokenizer(), clip_tokenizer(77)
        text = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=4,  # the last two are not read
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=tokenizer.pad_token_id,
        )
        network = HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            guidance_embeds=guidance_embeds,
            text_embed_dim=32,
            pooled_projection_dim=16,
            rope_axes_dim=(4, 4, 8),
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = HunyuanVideoPipeline(
            text_encoder=LlamaModel(text).eval(),
            tokenizer=tokenizer,
            transformer=network,
            vae=AutoencoderKLHunyuanVideo(
                latent_channels=4,
                down_block_types=("HunyuanVideoDownBlock3D",) * 3,
                up_block_types=("HunyuanVideoUpBlock3D",) * 3,
                block_out_channels=(8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
                spatial_compression_ratio=4,
            ).eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=clip_text_model(clip_words),
            tokenizer_2=clip_words,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
