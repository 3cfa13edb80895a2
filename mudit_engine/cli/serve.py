"""`mudit serve`: one model that many people share, over HTTP.

    mudit serve tiny --port 8000                    # then open http://127.0.0.1:8000
    mudit serve deploy --runtime onnxruntime --keys keys.txt --folder songs
    mudit serve --new-key team-a                    # prints a key, and its line for the file
    mudit serve deploy --ray auto --denoisers 2-8   # on the machines of a Ray cluster

The first SIGTERM or Ctrl-C drains: no new songs, open ones are finished (--drain-seconds), then the
process ends; what is left goes on after a restart. A second one ends at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mudit_engine.cli._console import note
from mudit_engine.cli._numbers import FiniteRange
from mudit_engine.errors import InputError

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Range(click.ParamType):
    """N, or MIN-MAX."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        least, _, most = str(value).partition("-")
        try:
            found = int(least), int(most or least)
        except ValueError:
            self.fail(f"'{value}' is neither a number nor MIN-MAX", param, ctx)
        if not 1 <= found[0] <= found[1]:
            self.fail(f"'{value}' is no range of 1 or more", param, ctx)
        return found


@click.command()
@click.argument("model", default="tiny")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onnxruntime", "openvino", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What runs the networks.",
)
@click.option("--device", help="For --runtime torch: cpu, cuda or cuda:N.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FOLDER[:SCALE]",
    help="A LoRA that a song may ask for by the folder's name. Repeatable.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Make all songs with the model's few-step student, in its few steps without guidance.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--folder",
    type=FOLDER,
    default=Path("songs"),
    show_default=True,
    help="Where jobs and songs are kept.",
)
@click.option("--keys", type=FILE, help="API keys, a line each: NAME sha256:HEX [seconds a day].")
@click.option("--new-key", metavar="NAME", help="Print a new key and its line, and end.")
@click.option("--quota", type=FiniteRange(0), help="Seconds of song a day of a key.")
@click.option("--max-seconds", type=FiniteRange(1), help="Longest song.  [default: model's]")
@click.option(
    "--max-open", type=click.IntRange(1), default=100, show_default=True, help="Songs open at once."
)
@click.option(
    "--max-upload-mib",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Of a reference.",
)
@click.option("--keep-days", type=FiniteRange(0), default=7.0, show_default=True, help="Of a song.")
@click.option(
    "--keep-gib", type=FiniteRange(0), default=20.0, show_default=True, help="Of all songs."
)
@click.option(
    "--drain-seconds",
    type=FiniteRange(0),
    default=60.0,
    show_default=True,
    help="Time for open songs after SIGTERM.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the networks.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Serve on a Ray cluster: 'local' starts one of this machine, 'auto' joins the running "
    "one.",
)
@click.option(
    "--denoisers",
    type=Range(),
    default="1",
    show_default=True,
    metavar="N|MIN-MAX",
    help="With --ray: replicas that denoise, one a GPU; more when more frames are queued.",
)
@click.option(
    "--decoders",
    type=Range(),
    default="1",
    show_default=True,
    metavar="N|MIN-MAX",
    help="With --ray: replicas that decode.",
)
@click.option(
    "--frames-per-denoiser",
    type=click.IntRange(1),
    default=16384,
    show_default=True,
    help="With --ray: queued latent frames beyond which another one is started.",
)
def command(
    model: str,
    runtime: str,
    device: str | None,
    host: str,
    port: int,
    folder: Path,
    keys: Path | None,
    new_key: str | None,
    threads: int | None,
    ray: str | None,
    loras: tuple[str, ...],
    fast: bool,
    **chosen: Any,
) -> None:
    """Serve MODEL over HTTP: the API under /v1, its document at /docs, a page at /."""
    from mudit_engine.serving import access

    if new_key is not None:
        key = access.new_key()
        click.echo(access.line_of(new_key, key))
        note(f"the key, shown this once: {key}\nappend the line above to the file of --keys")
        return
    from mudit_engine.availability import require

    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(package, "mudit serve")
    known = access.Keys.load(keys, quota=chosen["quota"]) if keys else None
    if known is None and chosen["quota"] is not None:
        known = access.Keys(quota=chosen["quota"])
    if loras and runtime not in ("auto", "torch"):
        raise InputError(
            f"--lora is for --runtime torch: '{runtime}' runs the weights it was exported with"
        )
    if fast and runtime not in ("auto", "torch"):
        raise InputError(
            f"--fast is for --runtime torch: for '{runtime}', serve what `mudit export onnx "
            "--fast` writes"
        )
    if device is not None and runtime not in ("auto", "torch"):
        raise InputError(f"--device {device} is for --runtime torch")

    from mudit_engine.cli._deployed import deployed
    from mudit_engine.models.lora import parse_lora
    from mudit_engine.serving.app import ServiceOptions, create_app
    from mudit_engine.serving.engine import Engine
    from mudit_engine.serving.run import run_service
    from mudit_engine.serving.service import Retention
    from mudit_engine.serving.uploads import UploadLimits

    specs = [parse_lora(text) for text in loras]

    def open_engine() -> Engine:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return Engine.open(
            model,
            runtime=runtime,
            device=device,
            deploy=lambda source, name: deployed(source, runtime=name, quiet=True),
            loras=specs,
            fast=fast,
        )

    options = ServiceOptions(
        most_seconds=chosen["max_seconds"],
        most_open=chosen["max_open"],
        upload=UploadLimits(bytes=chosen["max_upload_mib"] << 20),
        retention=Retention(chosen["keep_days"] * 86400, int(chosen["keep_gib"] * 2**30)),
    )
    if ray is not None:
        _serve_on_ray(
            ray,
            model=model,
            runtime=runtime,
            device=device,
            folder=folder,
            threads=threads,
            options=options,
            keys=known,
            loras=tuple(replace(one, folder=one.folder.resolve()) for one in specs),
            fast=fast,
            host=host,
            port=port,
            chosen=chosen,
        )
        return
    if (chosen["denoisers"], chosen["decoders"]) != ((1, 1), (1, 1)):
        raise InputError("--denoisers and --decoders belong to --ray")
    app = create_app(open_engine, folder=folder, options=options, keys=known)
    note(f"serving '{model}' on http://{host}:{port} (songs in {folder}); Ctrl-C drains and ends")
    run_service(app, folder=folder, host=host, port=port, drain_seconds=chosen["drain_seconds"])


def _serve_on_ray(
    address: str, *, host: str, port: int, folder: Path, chosen: dict[str, Any], **settings: Any
) -> None:
    from mudit_engine.availability import require

    require("ray", "--ray")
    from mudit_engine.models.folder import model_folder
    from mudit_engine.serving.folder_claim import claimed
    from mudit_engine.serving.ray_app import RaySettings, run_on_ray
    from mudit_engine.serving.run import bound

    if address == "local":
        bound(host, port).close()  # an address that is taken is told before a cluster is started
    device = settings.pop("device")
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {device}: with --ray it is cpu or cuda, Ray gives out the GPUs")
    model = Path(settings.pop("model"))
    # workers have another working folder
    source = str(model_folder(model).resolve()) if model.exists() else str(model)
    if settings["runtime"] in ("onnxruntime", "openvino"):
        from mudit_engine.cli._deployed import deployed

        source = str(deployed(source, runtime=settings["runtime"]).resolve())
    found = RaySettings(
        source,
        folder.absolute(),
        gpus=None if device is None else device == "cuda",
        denoisers=chosen["denoisers"],
        decoders=chosen["decoders"],
        frames=chosen["frames_per_denoiser"],
        **settings,
    )
    note(f"starting replicas of '{model}' on Ray ({address}); Ctrl-C drains and ends")
    with claimed(found.folder):  # the ingress, whose songs they are, runs on this machine
        run_on_ray(
            found,
            address=address,
            host=host,
            port=port,
            drain_seconds=chosen["drain_seconds"],
            ready=lambda: note(f"serving on http://{host}:{port} (songs in {folder})"),
        )
