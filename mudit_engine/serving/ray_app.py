"""The service on a Ray cluster: one ingress, a denoiser a GPU, decoders beside them.

    run_on_ray(RaySettings(model="tiny", folder=Path("songs")), address="local", port=8000)

    ingress     the HTTP service of app.py, one replica, on the machine whose disk holds the songs
    denoisers   a batcher each (replicas.py); more of them when more latent frames are queued
    decoders    latents to audio

The jobs lie in the ingress' table. A denoiser or decoder that dies loses no song: dispatch.py hands
it to another. An ingress that dies is started again by Ray Serve and goes on with the open jobs.
Needs the extra `ray`; every machine sees the model under the same name or path.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mudit_engine.availability import require
from mudit_engine.errors import InputError, MuditError
from mudit_engine.models.lora import LoraSpec
from mudit_engine.serving.access import Keys
from mudit_engine.serving.app import ServiceOptions, create_app
from mudit_engine.serving.dispatch import Dispatcher, RemoteEngine
from mudit_engine.serving.engine import named_loras
from mudit_engine.serving.ray_songs import connect
from mudit_engine.serving.replicas import QUEUED_FRAMES, Said, SongDecoder, SongDenoiser

logger = logging.getLogger(__name__)

APP = "mudit"
DENOISER_SHARE = 0.9  # of a GPU: one a GPU, and room for a decoder
DECODER_SHARE = 0.1
FINISHING = 600.0  # seconds that a replica which is no longer wanted may take for its songs


@dataclass(frozen=True)
class RaySettings:
    """What runs on the cluster.

    Args:
        model: name or folder, the same on every machine.
        folder: of jobs and songs, on the machine that starts the service.
        runtime: of the denoisers; decoders run the VAE on torch.
        gpus: whether denoisers and decoders take GPUs; None where the cluster has any.
        threads: CPUs of a replica, and its threads.
        denoisers: at least and at most.
        decoders: at least and at most.
        frames: latent frames that are queued or denoised for each denoiser, beyond which another
            one is started.
        songs: at a denoiser at once; more wait in front of all of them.
        options: of the HTTP service.
        keys: who may ask; None is everybody.
        loras: that songs may ask for, the same folders on every machine.
        fast: with the model's few-step student.
    """

    model: str
    folder: Path
    runtime: str = "auto"
    gpus: bool | None = None
    threads: int | None = None
    denoisers: tuple[int, int] = (1, 1)
    decoders: tuple[int, int] = (1, 1)
    frames: int = 16384
    songs: int = 32
    options: ServiceOptions = field(default_factory=ServiceOptions)
    keys: Keys | None = None
    loras: tuple[LoraSpec, ...] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        for name in ("denoisers", "decoders"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise InputError(f"{name}: {least} to {most} is no range: give MIN-MAX, 1 or more")


def wanted_denoisers(
    queued: dict[Any, float], *, waiting: float, running: float, frames: int
) -> int:
    """Replicas for the frames that are queued at each, and for `waiting` songs in front of them,
    which are taken to be as long as the `running` ones.
    """
    known = sum(queued.values())
    mean = known / running if running >= 1 else 0.0
    return math.ceil((known + mean * max(waiting, 0.0)) / frames)


class QueuedFrames:
    """Ray Serve's policy of the denoisers; its bounds and delays are applied by Ray."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        queued = (context.aggregated_metrics or {}).get(QUEUED_FRAMES, {})
        wanted = wanted_denoisers(
            queued,
            waiting=context.total_queued_requests or 0.0,
            running=context.total_running_requests,
            frames=self.frames,
        )
        return wanted, {}


def application(settings: RaySettings, *, pinned: dict[str, float] | None = None) -> Any:
    """The Ray Serve application. `pinned`: custom resources that hold the ingress on a machine."""
    require("ray", "--ray")
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    gpu = bool(settings.gpus)
    cpus = float(settings.threads or 1) if not gpu else 1.0
    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": FINISHING,
        "health_check_period_s": 5,
    }
    device = "cuda" if gpu else "cpu"
    denoiser = serve.deployment(
        SongDenoiser,
        name="denoiser",
        max_ongoing_requests=settings.songs,
        ray_actor_options={"num_cpus": cpus, "num_gpus": DENOISER_SHARE if gpu else 0},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.denoisers[0],
            max_replicas=settings.denoisers[1],
            metrics_interval_s=2,
            look_back_period_s=4,
            upscale_delay_s=5,
            downscale_delay_s=120,
            # Ray imports it in its controller, by name
            policy=AutoscalingPolicy(
                policy_function=f"{__name__}:{QueuedFrames.__name__}",
                policy_kwargs={"frames": settings.frames},
            ),
        ),
        **common,
    ).bind(
        settings.model,
        runtime=settings.runtime,
        device=device if settings.runtime == "torch" else None,
        threads=settings.threads,
        save_every=settings.options.save_every,
        loras=settings.loras,
        fast=settings.fast,
    )
    decoder = serve.deployment(
        SongDecoder,
        name="decoder",
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": cpus / 2, "num_gpus": DECODER_SHARE if gpu else 0},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.decoders[0],
            max_replicas=settings.decoders[1],
            target_ongoing_requests=4,
        ),
        **common,
    ).bind(settings.model, device=device, threads=settings.threads)

    @serve.ingress()
    class Ingress:
        """app.py's service in front of the others."""

        def __init__(self, denoiser: Any, decoder: Any) -> None:
            self.handles = denoiser, decoder

        def __serve_build_asgi_app__(self) -> Any:
            self.built = create_app(
                lambda: open_remote(settings, *self.handles),
                folder=settings.folder,
                options=settings.options,
                keys=settings.keys,
            )
            return self.built

        async def drain(self, seconds: float) -> bool:
            """Takes no more songs and waits for the open ones."""
            import asyncio

            if (service := self.built.state.service) is None:
                return True
            return bool(await asyncio.to_thread(service.drain, seconds))

        async def check_health(self) -> None:
            if (service := self.built.state.service) is not None:
                assert service.engine.batcher.alive, "the dispatcher's thread has ended"

    return serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=1000,  # listeners, most of them
        ray_actor_options={"num_cpus": 0, "resources": pinned or {}},
        health_check_period_s=5,
    ).bind(denoiser, decoder)


def open_remote(settings: RaySettings, denoiser: Any, decoder: Any) -> RemoteEngine:
    """The ingress' engine. Waits until a denoiser is there."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import DeploymentUnavailableError

    from mudit_engine.config import load_config
    from mudit_engine.models.fewstep import student_of
    from mudit_engine.models.folder import model_folder

    folder = model_folder(settings.model)
    config = load_config(folder)
    if settings.fast:
        config = student_of(folder).configured(config)
    about = denoiser.about.remote().result()
    dispatcher = Dispatcher(
        streamed(denoiser.options(stream=True).denoise),
        streamed(decoder.options(stream=True).decode),
        config,
        lost=(RayActorError, DeploymentUnavailableError),
    )
    return RemoteEngine(config, about, dispatcher, loras=named_loras(settings.loras))


def streamed(method: Any) -> Callable[..., AsyncIterator[Any]]:
    """A replica's streaming method as an async iterator that cancels the call when it is closed."""

    async def call(*arguments: Any, **named: Any) -> AsyncIterator[Said | bytes]:
        answers = method.remote(*arguments, **named)
        ended = False
        try:
            async for one in answers:
                yield one
            ended = True
        finally:
            if not ended:
                answers.cancel()

    return call


def run_on_ray(
    settings: RaySettings,
    *,
    address: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_seconds: float = 60.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves on the cluster until SIGTERM or SIGINT, then drains.

    address: 'local' starts a cluster of this machine, 'auto' joins the running one, anything else
    is a cluster's address. `ready` is called when songs are taken. Raises InputError where there is
    no cluster, or it has too little for the replicas.
    """
    require("ray", "--ray")
    import ray
    from ray import serve

    connect(address)
    ending = threading.Event()
    again = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        (again if ending.is_set() else ending).set()

    before = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        resources = ray.cluster_resources()
        if settings.gpus is None:
            settings = replace(settings, gpus=resources.get("GPU", 0) > 0)
        _enough(resources, settings)
        here = _resource_of_this_node(ray)
        _start_proxy(serve, host, port)
        handle = serve.run(
            application(settings, pinned={here: 0.001}), name=APP, route_prefix="/", blocking=False
        )
        _answering(host, port)
        ready()
        while not ending.wait(0.5):
            pass
        answer = handle.drain.remote(drain_seconds)
        while not again.is_set():
            with suppress(TimeoutError):
                if not answer.result(timeout_s=0.5):
                    logger.warning("songs are left: they go on after a restart")
                break
        serve.delete(APP)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if address == "local":
            serve.shutdown()
        ray.shutdown()


def _answering(host: str, port: int) -> None:
    """Raises InputError when the service is not at this address: the Ray Serve of a cluster keeps
    the one that it was started with.
    """
    import http.client

    status: int | OSError
    there = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=10)
    try:
        there.request("GET", "/ready")
        status = there.getresponse().status
    except OSError as error:
        status = error
    finally:
        there.close()
    if status != 200:
        raise InputError(
            f"{host}:{port} does not answer for the service ({status}): this cluster's Ray Serve "
            "was started at another address. Give that one, or end it with `serve shutdown`"
        )


def _start_proxy(serve: Any, host: str, port: int) -> None:
    """Starts Ray Serve. Its proxy is killed when it takes more than some seconds to start, which a
    busy machine needs: it is tried again. Raises MuditError.
    """
    from ray.exceptions import RayActorError

    for left in (2, 1, 0):
        try:
            serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
            return
        except (RayActorError, TimeoutError) as error:
            if not left:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise MuditError(
                    "Ray Serve's proxy did not start in the time that Ray gives it "
                    f"(RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S, in the cluster's environment): {said}"
                ) from None
            time.sleep(1)


def _resource_of_this_node(ray: Any) -> str:
    """The resource that Ray gives every machine by its address, of the one that runs this."""
    own = ray.get_runtime_context().get_node_id()
    [node] = [one for one in ray.nodes() if one["NodeID"] == own]
    names = (name for name in node["Resources"] if name.startswith("node:"))
    return next(name for name in names if name != "node:__internal_head__")


def _enough(resources: dict[str, float], settings: RaySettings) -> None:
    """Raises InputError when the fewest replicas do not fit: they would wait for ever."""
    least, decoders = settings.denoisers[0], settings.decoders[0]
    if settings.gpus:
        if (there := resources.get("GPU", 0)) < least:
            raise InputError(
                f"{least} denoisers take a GPU each, and the cluster has {there:g}: ask for fewer, "
                "or add machines"
            )
        return
    need = (settings.threads or 1) * (least + 0.5 * decoders)
    if (there := resources.get("CPU", 0)) < need:
        raise InputError(
            f"{least} denoisers and {decoders} decoders take {need:g} CPUs, and the cluster has "
            f"{there:g}: ask for fewer, or add machines"
        )
