"""The state of codec and ChinMu on a rank, by the closed forms of state_bytes.py.

    plan_stage(load_recipe("musit-380m-vae"), cluster)["memory_bytes"]

Their networks are small (tens of millions of parameters): what a GPU holds of them is activations,
which this does not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mudit_engine.availability import require
from mudit_engine.config import ChinMuConfig
from mudit_engine.errors import InputError
from mudit_engine.models.folder import NoInitialisers
from mudit_engine.training.parallel.deepspeed_config import deepspeed_config
from mudit_engine.training.planning.clusters import GIB, Cluster
from mudit_engine.training.planning.state_bytes import (
    KINDS,
    Sharding,
    parameters_in,
    state_bytes,
)
from mudit_engine.training.recipe import Recipe

# sizes of text encoders, by their configurations on the hub
TEXT_ENCODERS: dict[str, dict[str, int]] = {"hfl/chinese-roberta-wwm-ext": {"vocab_size": 21128}}


def plan_stage(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Bytes by phase and kind. Raises InputError for another task, ConfigError where recipe and
    cluster do not fit.
    """
    phases: dict[str, dict[str, Any]] = {}
    for phase, module in _networks(recipe).items():
        parameters = parameters_in(module, recipe.optimizer)
        average = recipe.ema.enabled and phase != "discriminator"
        plain = Sharding.of(recipe, cluster.world)
        sharding = Sharding(
            plain.stage, plain.world, plain.precision, average, plain.overlap, plain.parallel
        )
        memory = state_bytes(parameters, sharding)
        phases[phase] = {
            "parameters": parameters.count,
            "memory": memory,
            "deepspeed": deepspeed_config(recipe, parameters=parameters.count, world=cluster.world),
        }
    total = sum(sum(found["memory"].values()) for found in phases.values())
    assumed = cluster.assumptions
    room = (cluster.gpu.memory_gib - assumed.context_gib) * GIB / (1 + assumed.fragmentation)
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "kinds": list(KINDS),
        "phases": phases,
        "memory_bytes": total,
        "room_bytes": room - total,
        "fits": total < room,
        "packs_per_step": recipe.data.packs_per_step,
        "not_modelled": ["activations", "time"],
    }


def _networks(recipe: Recipe) -> dict[str, nn.Module]:
    """The trained networks of a recipe without memory."""
    config = recipe.model_config_resolved()
    if recipe.task == "chinmu":
        return {"model": _chinmu(config.chinmu)}
    if recipe.task == "vae":
        from mudit_engine.models.vae import SpectralVAE
        from mudit_engine.training.tasks.vae import DiscriminatorLoss

        with torch.device("meta"), NoInitialisers():
            phases: dict[str, nn.Module] = {"generator": SpectralVAE(config.vae)}
            if recipe.vae.adversarial:
                width = recipe.vae.discriminator_width
                phases["discriminator"] = DiscriminatorLoss(config.vae.channels, width)
        return phases
    raise InputError(
        f"recipe '{recipe.name}' trains '{recipe.task}', which is planned by --lyrics MODEL"
    )


def _chinmu(config: ChinMuConfig) -> nn.Module:
    """ChinMu, its text encoder by the known sizes of the hub's: planning fetches nothing."""
    from mudit_engine.models.chinmu import CHARACTERS, ChinMu

    characters = config.model_copy(update={"text_encoder": CHARACTERS})
    with NoInitialisers():  # its filters are computed: not on the meta device
        chinmu = ChinMu(characters)
    if config.text_encoder == CHARACTERS:
        return chinmu
    known = TEXT_ENCODERS.get(config.text_encoder)
    if known is None:
        raise InputError(
            f"the sizes of the text encoder '{config.text_encoder}' are not known: plans know "
            f"{', '.join((CHARACTERS, *TEXT_ENCODERS))}"
        )
    require("transformers", f"the plan of the text encoder '{config.text_encoder}'")
    from transformers import BertConfig, BertModel

    encoder = BertConfig(**known)
    with torch.device("meta"), NoInitialisers():
        project = nn.Linear(encoder.hidden_size, config.embedding)
        chinmu.text = nn.ModuleDict({"encoder": BertModel(encoder), "project": project})
    return chinmu
