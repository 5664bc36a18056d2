"""Tiny random pipelines of real diffusers classes: the same code paths as a real checkpoint, in
milliseconds.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLWan,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from align_gen import pipelines
from align_gen.check.findings import Finding
from align_gen.check.subject import Subject

TOKENS = 24  # that a prompt may have, with its two ends
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_MODEL = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}  # as Stable Diffusion 1.5 has them


def clip_tokenizer(max_length: int = TOKENS) -> CLIPTokenizer:
    """CLIP's tokenizer over letters: one token a character, as there are no merges."""
    letters = [chr(i) for i in range(33, 127)]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(
            json.dumps({token: i for i, token in enumerate(tokens)})
        )
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)


def clip_text_model(tokenizer: CLIPTokenizer, width: int = 16, projection: bool = False) -> Any:
    """A text encoder of two layers, with the projection of its pooled output where a family reads
    that.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """A VAE that halves height and width."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def ddim(**options: Any) -> DDIMScheduler:
    """DDIM on Stable Diffusion's noise schedule."""
    return DDIMScheduler(**SCHEDULE | LATENT_MODEL | options)


UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
XL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 32,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}


def unet(**options: Any) -> UNet2DConditionModel:
    """In which the text, and with it guidance, matters though it is untrained."""
    network = UNet2DConditionModel(**UNET | options).eval()
    for name, weight in network.named_parameters():
        if "attn2.to_out" in name:
            weight.data *= 8
    return network


def stable_diffusion(
    seed: int = 0, scheduler: Any = None, **options: Any
) -> StableDiffusionPipeline:
    """Latents (4, 8, 8), pictures 16 x 16, every component random but the same at equal ``seed``.

    ``scheduler`` is put in after construction: the pipeline's constructor rewrites steps_offset and
    clip_sample.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        network = unet(**options)
        pipeline = StableDiffusionPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=ddim(),
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
        )
    if scheduler is not None:
        pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def t5_tokenizer(max_length: int = TOKENS) -> T5TokenizerFast:
    """T5's tokenizer over letters: one token a character."""
    letters = [(chr(i), -1.0) for i in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=max_length)


def t5_encoder(tokenizer: T5TokenizerFast, width: int = 32) -> T5EncoderModel:
    """A text encoder of two layers."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()


def stable_diffusion_3(
    seed: int = 0, t5: bool = True, **scheduler: Any
) -> StableDiffusion3Pipeline:
    """Latents (4, 8, 8), pictures 16 x 16; both CLIP encoders, T5 or none, a VAE with a shift."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, t5_words = clip_tokenizer(), t5_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = StableDiffusion3Pipeline(
            transformer=network,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            vae=vae,
            text_encoder=clip_text_model(tokenizer, projection=True),
            tokenizer=tokenizer,
            text_encoder_2=clip_text_model(tokenizer, projection=True),
            tokenizer_2=tokenizer,
            text_encoder_3=t5_encoder(t5_words) if t5 else None,
            tokenizer_3=t5_words if t5 else None,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_xl(seed: int = 0, **options: Any) -> StableDiffusionXLPipeline:
    """Latents (4, 8, 8), pictures 16 x 16; both text encoders, sizes as a condition, zeros for no
    negative text.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer()
        pipeline = StableDiffusionXLPipeline(
            unet=unet(**XL | options),
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=clip_text_model(tokenizer, projection=True),
            tokenizer_2=tokenizer,
            scheduler=ddim(),
            add_watermarker=False,
        )
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def controlled(base: Callable[[], Any], kind: Any, **options: Any) -> Any:
    """A pipeline with a ControlNet whose maps matter: its last layers are zero in an untrained
    one.
    """
    plain = base()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = ControlNetModel.from_unet(
            plain.unet, conditioning_embedding_out_channels=(4, 8)
        ).eval()
        for name, weight in network.named_parameters():
            if "controlnet_" in name:
                weight.data = torch.randn(weight.shape) / 4
    pipeline = kind(**plain.components, controlnet=network, **options)
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def controlnet() -> StableDiffusionControlNetPipeline:
    return controlled(
        stable_diffusion, StableDiffusionControlNetPipeline, requires_safety_checker=False
    )


def controlnet_xl() -> StableDiffusionXLControlNetPipeline:
    return controlled(
        stable_diffusion_xl, StableDiffusionXLControlNetPipeline, add_watermarker=False
    )


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """The UNet reads four channels more: the picture to edit."""
    parts = stable_diffusion(in_channels=8, out_channels=4).components
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.scheduler = ddim()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modelscope() -> TextToVideoSDPipeline:
    """Videos of 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        network = UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()
        for name, weight in network.named_parameters():
            if "attn2.to_out" in name:
                weight.data *= 8
        pipeline = TextToVideoSDPipeline(
            vae=autoencoder(),
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=ddim(),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def animatediff() -> AnimateDiffPipeline:
    """Videos of up to 8 frames of 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        motion = MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            motion_norm_num_groups=4,
        ).eval()
        for name, weight in motion.named_parameters():
            if "proj_out" in name:  # zero in an untrained one
                weight.data = torch.randn(weight.shape) / 4
        plain = stable_diffusion()
        parts = {
            name: plain.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")
        }
        pipeline = AnimateDiffPipeline(**parts, motion_adapter=motion, scheduler=ddim())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """Latents (4, 8, 8), pictures 16 x 16; packed two by two, dynamic shift, embedded guidance or
    none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, t5_words = clip_tokenizer(), t5_tokenizer()
        vae = autoencoder()
        vae.register_to_config(scaling_factor=1.5, shift_factor=0.06)
        network = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ).eval()
        network.proj_out.weight.data *= 8
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae,
            text_encoder=clip_text_model(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(t5_words),
            tokenizer_2=t5_words,
            transformer=network,
        )
    pipeline.default_sample_size = 8
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def wan(seed: int = 0, boundary_ratio: float | None = None, scheduler: Any = None) -> WanPipeline:
    """Latents (4, 2, 4, 4) of 5 frames of 32 x 32; one transformer, or two with a boundary.

    The published scheduler is UniPC, which tells the network whole timesteps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = t5_tokenizer()
        text = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.2, 2.0],
        ).eval()

        def network() -> WanTransformer3DModel:
            made = WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=32,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            ).eval()
            made.proj_out.weight.data *= 8
            return made

        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(text).eval(),
            vae=vae,
            scheduler=scheduler or UniPCMultistepScheduler(**UNIPC),
            transformer=network(),
            transformer_2=network() if boundary_ratio else None,
            boundary_ratio=boundary_ratio,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def of(file: str, **options: Any) -> Callable[[], Any]:
    """The builder of a file's name, with options; imported on first use, as it takes its parts from
    here.
    """
    return lambda: getattr(import_module(f"{__name__}.{file}"), file)(**options)


PIPELINES: dict[str, Callable[..., Any]] = {
    "sd": stable_diffusion,
    "instruct-pix2pix": instruct_pix2pix,
    "controlnet": controlnet,
    "animatediff": animatediff,
    "modelscope": modelscope,
    "sdxl": stable_diffusion_xl,
    "controlnet-xl": controlnet_xl,
    "sd3": stable_diffusion_3,
    "sd3-without-t5": partial(stable_diffusion_3, t5=False),
    "sd3-dynamic-shift": partial(stable_diffusion_3, use_dynamic_shifting=True, shift=1.0),
    "flux": flux,
    "flux-schnell": partial(flux, guidance_embeds=False),
    "flux-kontext": of("flux_kontext"),
    "qwen-image": of("qwen_image"),
    "z-image": of("z_image"),
    "wan": wan,
    "wan-euler": partial(wan, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "wan-2.2": partial(
        wan, boundary_ratio=0.8, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)
    ),
    "pixart-sigma": of("pixart_sigma"),
    "sana": of("sana"),
    "sana-euler": of("sana", euler=True),
    "lumina-2": of("lumina_2"),
    "lumina-2-dynamic-shift": of("lumina_2", use_dynamic_shifting=True, shift=1.0),
    "cogvideox": of("cogvideox", use_rotary_positional_embeddings=True),
    "cogvideox-2b": of("cogvideox", snr_shift_scale=3.0),
    "cogvideox-1.5": of(
        "cogvideox", use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False
    ),
    "wan-image-2.1": of("wan_image"),
    "wan-image-2.2": of("wan_image", boundary_ratio=0.8),
    "wan-image-2.2-ti2v": of("wan_image", expand_timesteps=True),
    "ltx": of("ltx"),
    "ltx-0.9.5": of("ltx", timestep_conditioning=True),
    "hunyuan-video": of("hunyuan_video"),
    "hunyuan-video-undistilled": of("hunyuan_video", guidance_embeds=False),
}


IMAGE: dict[str, Any] = {"height": 16, "width": 16}
SIZES = {
    "SanaPipeline": {"height": 32, "width": 32},
    "AnimateDiffPipeline": {**IMAGE, "num_frames": 3},
    "TextToVideoSDPipeline": {**IMAGE, "num_frames": 3},
    "WanPipeline": {"height": 32, "width": 32, "num_frames": 5},
    "WanImageToVideoPipeline": {"height": 32, "width": 48, "num_frames": 5},
    "CogVideoXPipeline": {"height": 16, "width": 24, "num_frames": 9},
    "LTXPipeline": {"height": 32, "width": 64, "num_frames": 5},
    "HunyuanVideoPipeline": {"height": 16, "width": 32, "num_frames": 5},
}


def subject(name: str) -> Subject:
    """A tiny pipeline to check, at a size that its VAE takes."""
    pipeline = PIPELINES[name]()
    return Subject.of(pipelines.load(pipeline), **SIZES.get(type(pipeline).__name__, IMAGE))


def failed(found: list[Finding]) -> list[str]:
    """The laws that do not hold, and by how much."""
    return [
        f"{finding.name}: {finding.figure} (limit {finding.limit})"
        for finding in found
        if not finding.passed
    ]
