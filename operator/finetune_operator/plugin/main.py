"""The command line; each command imports what it needs, so that plan answers at once."""

import gc
import os
import sys
import traceback
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
    # What is imported stays until the end: looking for garbage among it takes a tenth of the time.
    gc.disable()
    # Looking for plugins of pydantic reads the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(prog_name="kubectl finetune")
    except PluginError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 - the boundary of the process
        place = traceback.extract_tb(error.__traceback__)[-1]
        sys.stderr.write(
            f"error: {type(error).__name__} in line {place.lineno} of {place.filename}: {error}:"
            " this is a fault of the plugin, please report it.\n"
        )
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
    price: Annotated[
        float | None, typer.Option(help="Price of one GPU-hour.", min=0, show_default=False)
    ] = None,
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
        from finetune_operator.plugin.plan_view import show
        from finetune_operator.plugin.terminal import console

        show(console(), found, price)
    else:
        from finetune_operator.plugin.documents import write

        write([scenario.to_json(price) for scenario in found], output)
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


@app.command()
def status(
    name: JobName,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Follow the job until it is finished.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show a job: progress, loss, speed, stability, attempts."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_status

    raise typer.Exit(show_status(Cluster(namespace, context), name, follow=watch))


@app.command()
def logs(
    name: JobName,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the pod ends.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print the log of the job's newest pod."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_logs

    raise typer.Exit(show_logs(Cluster(namespace, context), name, follow=follow))


@app.command()
def report(name: JobName, namespace: Namespace = None, context: Context = None) -> None:
    """Say where the report of a finished job is."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_report

    show_report(Cluster(namespace, context), name)


@app.command()
def recommend(
    data: Data = None,
    have: Annotated[
        Literal["examples", "pairs", "labels", "prompts"] | None,
        typer.Option(help="What the data is, when it is not in a local file."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="What scores answers: a built-in reward, or the source of a function."),
    ] = None,
    reward_model: Annotated[
        bool, typer.Option("--reward-model", help="Train a model that scores answers.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Model to start from, by its source.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU that you have, such as L4.")] = None,
    gpus: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    source: Annotated[str | None, typer.Option(help="Where the data is for the cluster.")] = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "my-job",
    claim: Annotated[str, typer.Option(help="Claim that receives the model.")] = "models",
    config: Config = None,
    parameters: Parameters = None,
    tokens: Tokens = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the job to this file.")
    ] = None,
) -> None:
    """Say which method, adapter and hardware fit, and write the job; without flags it asks."""
    from finetune_operator.plugin.advice import HAVE, Situation
    from finetune_operator.plugin.data_file import read_data_file
    from finetune_operator.plugin.facts import Known
    from finetune_operator.plugin.questions import ask_gpu, ask_model, ask_situation
    from finetune_operator.plugin.recommend import Wish, advise, show, to_yaml
    from finetune_operator.plugin.terminal import console

    file = read_data_file(data) if data else None
    situation = Situation(file.format if file else HAVE.get(have or ""), reward, reward_model)
    asks = sys.stdin.isatty()
    if asks and situation == Situation(None) and file is None:
        situation = ask_situation()
    if model is None and not asks:
        raise PluginError("--model is not given: name a model, such as hf://Qwen/Qwen3-8B.")
    model = model or ask_model()
    if asks and gpu is None:
        gpu = ask_gpu()
    wish = Wish(situation, model, file, source, gpu, gpus, name, claim)
    advice = advise(wish, Known(config, parameters, data, None, tokens))
    show(console(), advice, wish)
    if output:
        output.write_text(to_yaml(advice), encoding="utf-8")
        typer.echo(f"{output} is written: kubectl apply -f {output}")
    else:
        typer.echo(to_yaml(advice), nl=False)


@app.command()
def run(
    filename: File,
    local: Annotated[bool, typer.Option("--local", help="On this machine.")] = False,
    name: Selected = None,
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Folder that stands for a claim. Repeatable."),
    ] = None,
    configmap: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="File or folder for a ConfigMap. Repeatable."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the job, as plan --what-if does."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the workspace is kept; NAME.local unless given."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile a few steps; see profile beside the report.")
    ] = False,
) -> None:
    """Prepare, plan and train a job on this machine, without a cluster."""
    from finetune_operator.plugin.local import Folders, named_folders, run_local
    from finetune_operator.plugin.manifests import job_name, select

    if not local:
        raise PluginError("run is for this machine: give --local, or kubectl apply -f the job.")
    manifest = select(filename, name)
    base = folder or Path(f"{job_name(manifest)}.local")
    folders = Folders(base, named_folders(claim or []), named_folders(configmap or []))
    raise typer.Exit(run_local(manifest, changes or [], folders, profile=profile))
