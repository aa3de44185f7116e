"""`sae-mlflow export`: a trained SAE as files, for this package or for one of its peers."""

from typing import Annotated

import typer

from sae_mlflow.commands.cli import TRACKING_URI
from sae_mlflow.errors import UserError
from sae_mlflow.folders import user_path
from sae_mlflow.terminal import say


def export_command(
    format_: Annotated[
        str,
        typer.Option("--format", help="sae_lens, sparsify, dictionary_learning or pt."),
    ],
    output: Annotated[str, typer.Option(metavar="DIR", help="New folder that gets the files.")],
    run: Annotated[str | None, typer.Option(metavar="ID", help="The SAE of this run.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="URI", help="The SAE of this registered model: models:/NAME@ALIAS."),
    ] = None,
    tracking_uri: Annotated[str | None, TRACKING_URI] = None,
) -> None:
    """Write a trained SAE as files.

    Its format's own loader opens them; `load_sae` opens all.
    """
    if bool(run) == bool(model):
        raise UserError("Give one of --run ID and --model models:/NAME@ALIAS.")
    if model and not model.startswith("models:/"):
        raise UserError(f"--model {model!r}: write it as models:/NAME@ALIAS or models:/NAME/1.")
    if not output:
        raise UserError("--output is empty. Name a new folder.")
    from sae_mlflow.formats.sae_files import check_format, export_sae, read_stored
    from sae_mlflow.formats.stored_sae import build
    from sae_mlflow.tracking.contents import SAE_FOLDER
    from sae_mlflow.tracking.store import existing_store

    check_format(format_)
    source = model or ""
    if run:
        from sae_mlflow.tracking.trainings import layer_run

        source = f"runs:/{layer_run(existing_store(tracking_uri), run).run_id}/{SAE_FOLDER}"
    stored, file = read_stored(source, tracking_uri=tracking_uri or None)
    build(stored, file)  # what `load_sae` refuses is no export
    folder = user_path(output)
    export_sae(stored, format_, folder)
    sizes = f"{stored.config['d_in']} -> {stored.config['d_sae']}"
    say(f"{source}: {stored.architecture} SAE, {sizes} latents, as {format_} in {folder}")
