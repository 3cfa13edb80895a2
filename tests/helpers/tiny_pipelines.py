"""Tiny pipelines of other systems with random weights, in the layout in which theirs are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

RATE = 16000


def words(*, length: int = 32) -> Any:
    """A tokenizer that knows three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "slow": 3, "fast": 4, "piano": 5}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    return T5EncoderModel(
        T5Config(vocab_size=16, d_model=width, d_ff=16, d_kv=4, num_heads=2, num_layers=1)
    )


def oobleck(channels: int) -> Any:
    from diffusers import AutoencoderOobleck

    torch.manual_seed(0)
    return AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[20, 20],
        decoder_channels=3,
        decoder_input_channels=channels,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=RATE,
    )


def save_stable_audio(folder: Path) -> Path:
    from diffusers import (
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=2000,
        in_channels=3,
        out_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    StableAudioPipeline(
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(
            solver_order=2,
            prediction_type="v_prediction",
            sigma_data=1.0,
            sigma_schedule="exponential",
        ),
        vae=oobleck(3),
        text_encoder=t5(8),
        tokenizer=words(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=8, conditioning_dim=4, min_value=0, max_value=512
        ),
    ).save_pretrained(folder)
    return folder


def vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=RATE,
            upsample_initial_channel=8,
            upsample_rates=[10, 16],
            upsample_kernel_sizes=[20, 32],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            normalize_before=False,
        )
    )


def image_vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[8, 8],
        in_channels=1,
        out_channels=1,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
    )


def ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )


UNET = {
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def save_audioldm(folder: Path) -> Path:
    from diffusers import AudioLDMPipeline, UNet2DConditionModel
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=(8, 8),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=8,
        class_embeddings_concat=True,
    )
    text = ClapTextModelWithProjection(
        ClapTextConfig(
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            vocab_size=16,
            projection_dim=8,
        )
    )
    AudioLDMPipeline(
        vae=image_vae(),
        text_encoder=text,
        tokenizer=words(),
        unet=unet,
        scheduler=ddim(),
        vocoder=vocoder(),
    ).save_pretrained(folder)
    return folder


def save_audioldm2(folder: Path) -> Path:
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
    )
    from transformers import (
        AutoFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        RobertaTokenizerFast,
        T5TokenizerFast,
    )

    from tiny_encoders import save_clap

    roberta = {name: n for n, name in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>", "s"))}
    clap = save_clap(folder.with_name(folder.name + "-clap"))
    torch.manual_seed(0)
    unet = AudioLDM2UNet2DConditionModel(**UNET, cross_attention_dim=([None, 8, 16], [None, 8, 16]))
    language = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=16, n_positions=99)
    )
    language.config.max_new_tokens = 4
    AudioLDM2Pipeline(
        vae=image_vae(),
        text_encoder=ClapModel.from_pretrained(clap),
        text_encoder_2=t5(16),
        projection_model=AudioLDM2ProjectionModel(8, 16, 8),
        language_model=language,
        # the pipeline tells by a tokenizer's class what to give it
        tokenizer=RobertaTokenizerFast(vocab=roberta, merges=[], model_max_length=32),
        tokenizer_2=T5TokenizerFast(
            vocab=[
                (name, -1.0) for name in ("<pad>", "</s>", "<unk>", "\u2581slow", "\u2581piano")
            ],
            model_max_length=32,
            extra_ids=0,
        ),
        feature_extractor=AutoFeatureExtractor.from_pretrained(clap),
        unet=unet,
        scheduler=ddim(),
        vocoder=vocoder(),
    ).save_pretrained(folder)
    return folder


def save_ace_step(folder: Path) -> Path:
    from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
    from diffusers.pipelines.ace_step import AceStepConditionEncoder
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 16,
    }
    text = {name: value for name, value in shape.items() if name != "sliding_window"}
    AceStepPipeline(
        transformer=AceStepTransformer1DModel(
            **shape,
            num_hidden_layers=1,
            in_channels=24,
            audio_acoustic_hidden_dim=8,
            patch_size=2,
        ),
        condition_encoder=AceStepConditionEncoder(
            **shape,
            text_hidden_dim=16,
            timbre_hidden_dim=8,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        ),
        vae=oobleck(8),
        text_encoder=Qwen3Model(Qwen3Config(**text, num_hidden_layers=1, vocab_size=16)),
        tokenizer=words(length=256),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    ).save_pretrained(folder)
    return folder


def save_musicgen(folder: Path) -> Path:
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    torch.manual_seed(0)
    encodec = EncodecConfig(
        sampling_rate=RATE,
        audio_channels=1,
        hidden_size=8,
        num_filters=2,
        num_lstm_layers=1,
        codebook_size=16,
        codebook_dim=8,
        upsampling_ratios=[16, 20],
        target_bandwidths=[0.4],
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=8,
        num_codebooks=2,
        pad_token_id=16,
        bos_token_id=16,
    )
    text = T5Config(vocab_size=16, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1)
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=encodec.to_dict(), decoder=decoder.to_dict()
    )
    model = MusicgenForConditionalGeneration(config)
    for layer in model.audio_encoder.quantizer.layers:  # codebooks begin at zero
        layer.codebook.embed.normal_()
    model.generation_config.decoder_start_token_id = 16
    model.generation_config.pad_token_id = 16
    model.generation_config.bos_token_id = 16
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder
