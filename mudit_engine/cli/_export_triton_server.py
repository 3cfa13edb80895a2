"""`mudit export triton-server`: a model repository for NVIDIA's Triton Inference Server.

mudit export triton-server deploy repo --runtime onnxruntime
mudit export triton-server deploy repo --runtime tensorrt --gpu --instances 2
"""

from __future__ import annotations

from pathlib import Path

import click

from mudit_engine.cli._console import emit_json, json_option, note, print_table


@click.command("triton-server")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.argument("repository", metavar="REPO", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--runtime",
    type=click.Choice(("torch", "onnxruntime", "openvino", "tensorrt")),
    default="torch",
    show_default=True,
    help="What runs the networks.",
)
@click.option("--gpu", is_flag=True, help="Place the engine on a GPU.")
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Songs that wait in an engine at most.",
)
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Engines; with --gpu on each GPU.",
)
@click.option(
    "--whole",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Clients of mudit_whole served at once.",
)
@json_option
def command(
    folder: Path,
    repository: Path,
    runtime: str,
    gpu: bool,
    max_waiting: int,
    instances: int,
    whole: int,
    as_json: bool,
) -> None:
    """Write the model repository REPO of the deployment folder OUT: mudit_song streams events and
    audio, mudit_whole answers with the whole song.

    Serve it with `tritonserver --model-repository=REPO/models` where mudit-engine is installed.
    """
    from mudit_engine.availability import available
    from mudit_engine.export.model_repository import RepositoryOptions, write_repository

    options = RepositoryOptions(runtime, max_waiting, instances, gpu, whole)
    write_repository(folder, repository, options=options)
    models = sorted(path.name for path in (repository / "models").iterdir())
    validated = available("tritonclient")
    if as_json:
        emit_json(
            {
                "repository": str(repository),
                "models": models,
                "runtime": runtime,
                "schema_checked": validated,
            }
        )
        return
    files = [
        [path.parent.name, path.name, path.stat().st_size]
        for path in sorted((repository / "models").rglob("config.pbtxt"))
    ]
    print_table(
        f"Models in {repository}", ["model", "configuration", "bytes"], files, numeric=["bytes"]
    )
    if not validated:
        note(
            "configurations were not checked against the server's schema: pip install tritonclient"
        )
    note(f"tritonserver --model-repository={repository}/models")
