"""Tiny encoders with random weights, in the layout in which transformers loads real ones."""

from __future__ import annotations

from pathlib import Path

import torch

RATE = 16000


def save_encoder(folder: Path) -> Path:
    """A waveform encoder that stands in for MERT."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.5,
    }
    convolutions = {
        "conv_dim": (8, 8),
        "conv_kernel": (10, 8),
        "conv_stride": (40, 8),
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    HubertModel(HubertConfig(**shape, **convolutions)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False).save_pretrained(folder)
    return folder


def save_clap(folder: Path) -> Path:
    """A CLAP that knows three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "projection_dim": 8,
    }
    audio = {
        "spec_size": 128,
        "num_mel_bins": 16,
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
    }
    config = ClapConfig(
        text_config=text,
        audio_config={**audio, "projection_dim": 8, "window_size": 4, "num_classes": 4},
        projection_dim=8,
    )
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, max_length_s=10, truncation="rand_trunc"
    ).save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel(
            {"<pad>": 1, "<unk>": 2, "slow": 3, "fast": 4, "piano": 5}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def save_encodec(folder: Path) -> Path:
    """An EnCodec of eight features a frame."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_filters": 2, "num_lstm_layers": 1, "codebook_size": 16}
    sizes = {"upsampling_ratios": [4, 4], "codebook_dim": 8}
    config = EncodecConfig(sampling_rate=RATE, audio_channels=1, **shape, **sizes)
    EncodecModel(config).save_pretrained(folder)
    return folder
