"""Writes what is generated from the models: `python -m finetune_api.generate [--check]`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune_api import crd, names, observability, reference

ROOT = Path(__file__).resolve().parents[2]
HEADER = "Generated from crds/finetune_api by `make generate`; do not edit."
CRD_FILE = f"{names.GROUP}_{names.PLURAL}.yaml"


def generated_files() -> dict[Path, str]:
    """Return the text of every generated file by its path in the repository."""
    definition = crd.custom_resource_definition()
    manifest = f"# {HEADER}\n{_yaml(definition)}"
    return {
        ROOT / "crds" / CRD_FILE: manifest,
        ROOT / "helm/finetune-operator/files/crds" / CRD_FILE: manifest,
        # For the kubectl plugin, which answers at once: YAML takes long to read.
        ROOT / "operator/finetune_operator/plugin/schema.json": _schema(definition),
        ROOT / "docs/reference/finetunejob.md": reference.api_page(definition, HEADER),
        ROOT / "docs/reference/failures.md": reference.failures_page(HEADER),
        ROOT / "docs/reference/stability.md": observability.stability_page(HEADER),
        ROOT / "docs/reference/metrics.md": observability.metrics_page(HEADER),
        ROOT / "helm/finetune-operator/files/alerts.yaml": f"# {HEADER}\n"
        + _yaml(observability.alert_groups()),
    }


def stale_files() -> list[Path]:
    """Return the files that differ from what the models say, or are missing."""
    return [
        path
        for path, text in generated_files().items()
        if not path.is_file() or path.read_text() != text
    ]


def _schema(definition: dict[str, Any]) -> str:
    """Return the schema alone, without what is for people."""
    version = definition["spec"]["versions"][0]
    return f"{json.dumps(_undescribed(version['schema']['openAPIV3Schema']))}\n"


def _undescribed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_undescribed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        name: part
        for name, part in schema.items()
        if name != "description" or not isinstance(part, str)
    }
    return {name: _undescribed(part) for name, part in kept.items()}


def _yaml(document: dict[str, Any]) -> str:
    # Only developers generate; the contract itself needs no YAML.
    import yaml

    class Dumper(yaml.SafeDumper):
        """Never points from one place to another."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


def main() -> None:
    """Write the generated files, or with --check fail when they differ from the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    if parser.parse_args().check:
        stale = stale_files()
        if stale:
            listing = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            sys.exit(f"stale: {listing}; run `make generate` and commit what it writes")
        return
    for path, text in generated_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
