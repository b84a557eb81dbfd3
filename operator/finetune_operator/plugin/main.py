"""The command line; each command imports what it needs, so that plan answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune_operator.plugin.errors import PluginError

app = typer.Typer(
    name="kubectl finetune",
    help="Plans, checks, watches and runs FineTuneJobs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path, typer.Option("-f", "--filename", help="YAML or JSON file with the job; - is stdin.")
]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the FineTuneJob.")]
Selected = Annotated[
    str | None, typer.Option("--name", help="Which job, when the file holds several.")
]
Config = Annotated[
    Path | None, typer.Option(help="The model's config.json, or its folder.", show_default=False)
]
Parameters = Annotated[
    str | None, typer.Option(help="Size of the model, such as 8B.", show_default=False)
]
Data = Annotated[
    Path | None, typer.Option(help="A local JSON Lines, JSON or CSV file.", show_default=False)
]
Rows = Annotated[int | None, typer.Option(help="Training rows.", min=1, show_default=False)]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens of the longest row.", min=1, show_default=False)
]
Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace of the job.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]


def main() -> None:
    """Run the command line; errors are one sentence and exit code 2."""
    try:
        app(prog_name="kubectl finetune")
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


@app.command()
def plan(
    filename: File,
    name: Selected = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE[,...]",
            help="Compare with the job so changed: gpu=L4, memory=24Gi, count=2, adapter=qlora or"
            " any field, such as training.maxLength=8192. May be repeated.",
        ),
    ] = None,
    config: Config = None,
    parameters: Parameters = None,
    data: Data = None,
    rows: Rows = None,
    tokens: Tokens = None,
    output: Annotated[
        Literal["text", "json", "yaml"], typer.Option("-o", "--output", help="Format.")
    ] = "text",
) -> None:
    """Say which GPUs a job would get and why, without a cluster."""
    from finetune_operator.plugin.facts import Known
    from finetune_operator.plugin.manifests import select
    from finetune_operator.plugin.scenarios import scenarios

    known = Known(config, parameters, data, rows, tokens)
    found = scenarios(select(filename, name), what_if or [], known)
    if output == "text":
        from rich.console import Console

        from finetune_operator.plugin.plan_view import show

        show(Console(), found)
    else:
        from finetune_operator.plugin.documents import write

        write([scenario.to_json() for scenario in found], output)
    if found[0].plan is None:
        raise typer.Exit(1)


@app.command()
def validate(filename: File) -> None:
    """Check jobs as the API server would, without a cluster."""
    from finetune_operator.plugin.manifests import job_name, read_manifests
    from finetune_operator.plugin.rules import problems

    refused = False
    for manifest in read_manifests(filename):
        found = problems(manifest)
        refused = refused or bool(found)
        for problem in found or ["is valid"]:
            typer.echo(f"{job_name(manifest)}: {problem}")
    if refused:
        raise typer.Exit(2)
