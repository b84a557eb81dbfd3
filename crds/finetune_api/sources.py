"""What a job starts from: the model and the data."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Form, ObjectName, Rule, forbidden, rules

JOB_SCHEME: Final = "job://"
"""How a source begins that is the model of another FineTuneJob."""

_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
# No segment is `..`: a source never leaves its claim or bucket.
_PATH = r"\.?[^\s/.][^\s/]*(/\.?[^\s/.][^\s/]*)*/?"
_HUB = r"hf://[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(@[A-Za-z0-9_./-]+)?"
_CLAIM = rf"pvc://{_NAME}/{_PATH}"
_BUCKET = rf"s3://{_NAME}/{_PATH}"
_CONFIG_MAP = rf"configmap://{_NAME}/[A-Za-z0-9_.-]+"
_JOB = r"job://[a-z]([-a-z0-9]*[a-z0-9])?"

ModelSource = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Form(
        f"{_HUB}|{_CLAIM}|{_BUCKET}|{_JOB}",
        "hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or job://NAME",
    ),
]
"""hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or job://NAME."""

DatasetSource = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Form(
        f"{_HUB}|{_CLAIM}|{_BUCKET}|{_CONFIG_MAP}",
        "hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or configmap://NAME/KEY",
    ),
]
"""hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or configmap://NAME/KEY."""

Columns = Annotated[
    dict[str, Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=16)
]
"""New name of a column by its name in the dataset."""

SECRET_NEEDS_REMOTE = forbidden(
    "(has(self.source) && (self.source.startsWith('hf://') || self.source.startsWith('s3://')))",
    "secret is only for sources of the forms hf:// and s3://: leave it out",
    ".secret",
)


class Model(ApiModel):
    """The model to start from."""

    model_config = rules(
        SECRET_NEEDS_REMOTE,
        forbidden(
            "self.source.startsWith('job://')",
            "jobAdapter is only for a source of the form job://NAME, found {self.source}",
            ".jobAdapter",
        ),
    )

    source: ModelSource
    """Where the model is: hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX, or
    job://NAME for the model of another FineTuneJob of the namespace, which is waited for."""
    secret: ObjectName | None = None
    """Secret whose keys become environment variables while the model is fetched: HF_TOKEN for
    hf://, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_DEFAULT_REGION for
    s3://."""
    chat_template: str | None = Field(default=None, min_length=1, max_length=32768)
    """Jinja chat template that replaces the tokenizer's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: such models are refused during
    preparation."""
    job_adapter: Literal["merge", "continue"] | None = None
    """What to do when job://NAME made an adapter: merge it into the model first and train on that
    (the default), or continue training it."""


class DatasetFormat(StrEnum):
    """How to read the rows; auto recognises it by the columns."""

    AUTO = "auto"
    CHAT = "chat"
    INSTRUCTION = "instruction"
    PROMPT_COMPLETION = "prompt-completion"
    COMPLETION = "completion"
    TOKENIZED = "tokenized"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired-preference"
    PROMPT = "prompt"


class DatasetPart(ApiModel):
    """One dataset of a mixture."""

    model_config = rules(SECRET_NEEDS_REMOTE)

    source: DatasetSource
    """Where the rows are: hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or
    configmap://NAME/KEY; files are JSON Lines, JSON, CSV or Parquet."""
    secret: ObjectName | None = None
    """Secret whose keys become environment variables while the dataset is fetched."""
    split: str = Field(default="train", min_length=1, max_length=128)
    """Split to train on."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """Share of this dataset in the mixture, relative to the other weights."""
    format: DatasetFormat = DatasetFormat.AUTO
    """How to read the rows: chat, instruction, prompt-completion, completion, tokenized,
    preference, unpaired-preference or prompt; auto recognises it by the columns."""
    columns: Columns = Field(default={})
    """Renames columns before the format is recognised: the dataset's name to the expected name."""


class Dataset(ApiModel):
    """The data to train on: one source, or a weighted mixture."""

    model_config = rules(
        Rule(
            "has(self.source) || has(self.mixture)",
            "give source (one dataset) or mixture (several): neither is there",
            ".source",
            required=True,
        ),
        forbidden("!has(self.source)", "give either source or mixture: both are there", ".mixture"),
        Rule(
            "!has(self.mixture) || (!has(self.secret) && !has(self.columns)"
            " && self.split == 'train' && self.format == 'auto')",
            "secret, split, format and columns belong to the entries of mixture when it is given",
            ".mixture",
        ),
        Rule(
            "has(self.mixture) || " + SECRET_NEEDS_REMOTE.expression,
            SECRET_NEEDS_REMOTE.message,
            SECRET_NEEDS_REMOTE.field,
        ),
        forbidden(
            "self.evalFraction == 0.0",
            "give either evalSplit or evalFraction: evalFraction is {self.evalFraction}",
            ".evalSplit",
        ),
    )

    source: DatasetSource | None = None
    """Where the rows are: hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PREFIX or
    configmap://NAME/KEY; files are JSON Lines, JSON, CSV or Parquet."""
    mixture: list[DatasetPart] | None = Field(default=None, min_length=1, max_length=16)
    """Several datasets, mixed by their weights, in place of source."""
    secret: ObjectName | None = None
    """Secret whose keys become environment variables while the dataset is fetched."""
    split: str = Field(default="train", min_length=1, max_length=128)
    """Split to train on."""
    eval_split: str | None = Field(default=None, min_length=1, max_length=128)
    """Split that is held out for evaluation."""
    eval_fraction: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the training rows that is held out for evaluation, when there is no evalSplit."""
    format: DatasetFormat = DatasetFormat.AUTO
    """How to read the rows: chat, instruction, prompt-completion, completion, tokenized,
    preference, unpaired-preference or prompt; auto recognises it by the columns."""
    columns: Columns = Field(default={})
    """Renames columns before the format is recognised: the dataset's name to the expected name."""
    max_samples: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Use only so many rows from the start, for a trial run."""
    too_long: Literal["fail", "truncate", "drop"] = "fail"
    """What happens to rows longer than training.maxLength: fail during preparation, truncate, or
    drop."""
