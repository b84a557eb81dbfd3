"""The commands; each imports what it needs, so that plan answers at once."""

import sys
from argparse import Namespace
from pathlib import Path

from finetune_operator.plugin.errors import PluginError


def plan(options: Namespace) -> int:
    """Print which GPUs each job would get and why; return 1 when one gets no plan."""
    from finetune_operator.plugin.facts import Known
    from finetune_operator.plugin.manifests import job_name, model_sources, named, read_manifests
    from finetune_operator.plugin.prices import price_of, prices
    from finetune_operator.plugin.scenarios import scenarios

    known = Known(options.config, options.parameters, options.data, options.rows, options.tokens)
    manifests, given = read_manifests(options.filename), prices(options.price)
    sources, chosen = model_sources(manifests), named(manifests, options.name)
    found = []
    for manifest in chosen:
        try:
            found.append(scenarios(manifest, options.what_if, known, sources))
        except PluginError as error:
            name = f"{job_name(manifest)}: " if len(chosen) > 1 else ""
            raise PluginError(f"{name}{error}") from error
    if options.output == "text":
        from finetune_operator.plugin.plan_view import show
        from finetune_operator.plugin.terminal import console

        for number, each in enumerate(found):
            sys.stdout.write("\n" if number else "")
            show(console(), each, given)
    else:
        from finetune_operator.plugin.documents import write

        write(
            [one.to_json(price_of(given, one.plan)) for each in found for one in each],
            options.output,
        )
    return 0 if all(each[0].plan for each in found) else 1


def validate(options: Namespace) -> int:
    """Print what is wrong with the jobs of a file; return 2 when something is."""
    from finetune_operator.plugin.manifests import job_name, read_manifests
    from finetune_operator.plugin.rules import problems, unplannable

    refused = False
    for manifest in read_manifests(options.filename):
        found = problems(manifest) or unplannable(manifest)
        refused = refused or bool(found)
        for problem in found or ["is valid"]:
            sys.stdout.write(f"{job_name(manifest)}: {problem}\n")
    return 2 if refused else 0


def status(options: Namespace) -> int:
    """Print a job's status; return 1 when it has failed."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_status

    cluster = Cluster(options.namespace, options.context)
    return show_status(cluster, options.name, follow=options.watch)


def logs(options: Namespace) -> int:
    """Print the log of a job's newest pod; return kubectl's exit code."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_logs

    cluster = Cluster(options.namespace, options.context)
    return show_logs(cluster, options.name, follow=options.follow)


def report(options: Namespace) -> int:
    """Print where the report of a finished job is."""
    from finetune_operator.plugin.kubectl import Cluster
    from finetune_operator.plugin.watch import show_report

    show_report(Cluster(options.namespace, options.context), options.name)
    return 0


def recommend(options: Namespace) -> int:
    """Print which method, adapter and hardware fit, and write the job; without flags it asks."""
    from finetune_operator.plugin.advice import HAVE, Situation
    from finetune_operator.plugin.data_file import read_data_file
    from finetune_operator.plugin.facts import Known
    from finetune_operator.plugin.questions import ask_gpu, ask_model, ask_situation
    from finetune_operator.plugin.recommend import Wish, advise, show, to_yaml
    from finetune_operator.plugin.terminal import console

    if options.output and options.output.is_file():
        raise PluginError(f"-o {options.output} is there already: name another file, or remove it.")
    file = read_data_file(options.data) if options.data else None
    form = file.format if file else HAVE.get(options.have or "")
    situation = Situation(form, options.reward, options.reward_model)
    asks = sys.stdin.isatty()
    if asks and situation == Situation(None) and file is None:
        situation = ask_situation()
    if options.model is None and not asks:
        raise PluginError("--model is not given: name a model, such as hf://Qwen/Qwen3-8B.")
    model = options.model or ask_model()
    gpu = options.gpu or (ask_gpu() if asks else None)
    wish = Wish(
        situation, model, file, options.source, gpu, options.gpus, options.name, options.claim
    )
    known = Known(options.config, options.parameters, options.data, None, options.tokens)
    advice = advise(wish, known)
    show(console(), advice, wish)
    if options.output:
        try:
            options.output.write_text(to_yaml(advice), encoding="utf-8")
        except OSError as error:
            raise PluginError(
                f"-o {options.output} cannot be written: {error.strerror}."
            ) from error
        sys.stdout.write(f"{options.output} is written: kubectl apply -f {options.output}\n")
    else:
        sys.stdout.write(to_yaml(advice))
    return 0


def run(options: Namespace) -> int:
    """Prepare, plan and train a job on this machine; return the trainer's exit code."""
    from finetune_operator.plugin.local import Folders, named_folders, run_local
    from finetune_operator.plugin.manifests import job_name, named, only, read_manifests

    if not options.local:
        raise PluginError("run is for this machine: give --local, or kubectl apply -f the job.")
    manifest = only(named(read_manifests(options.filename), options.name))
    base = options.folder or Path(f"{job_name(manifest)}.local")
    folders = Folders(base, named_folders(options.claim), named_folders(options.configmap))
    return run_local(manifest, options.changes, folders, profile=options.profile)
