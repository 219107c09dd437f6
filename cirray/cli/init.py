"""`cirray init`: a commented project file for a folder of your own pictures."""

import json
from dataclasses import dataclass
from pathlib import Path

from cirray.core.config import Config, validate
from cirray.core.errors import ConfigError, DataError
from cirray.core.fields import Place
from cirray.core.places import Run
from cirray.core.storage import is_local

TABLES = {
    "triplets": ("reference", "target", "modification"),
    "queries": ("reference", "target", "modification"),
    "captions": ("image", "caption"),
}
"""Table of the folder layout -> the columns it needs."""
PUBLIC = "openai/clip-vit-base-patch32"
"""Hub id of the model that searches pictures without training, unless another is named."""
_QUERY_WORDS = ("quer", "test", "val")
"""Parts of a table's name by which it holds queries and no training triplets."""
_STORY = ("towers", "embed", "train-generator", "mine", "generate", "pretrain", "finetune")


class InitRun(Config):
    """Write a project file for a folder of your own pictures."""

    folder: Place = "."
    """Folder of pictures, with triplets.csv, captions.csv, queries.csv where you have them."""
    root: Place | None = None
    """Where the steps write their results; null: `~/cirray/NAME`, after the folder."""
    out: Place = "project.yaml"
    """The file to write; one that exists is refused."""


@dataclass(frozen=True)
class Found:
    """What a folder holds: its tables by kind, and numbers of rows and pictures."""

    folder: Path
    tables: dict[str, str]
    rows: dict[str, int]
    pictures: int
    pool: int
    flat: bool
    """Whether no picture is in `labelled/`, `pool/` or `gallery/`, so that each is in all three parts."""
    gallery: bool
    """Whether there is anything to search in without naming a folder."""

    @property
    def trains(self) -> bool:
        """Whether a retriever can be trained on it."""
        return bool(self.rows["triplets"])


def look(folder: Path) -> Found:
    """See what a folder holds; no picture is decoded.

    Raises DataError: no such folder, no picture in it, or a table with a bad row.
    """
    from cirray.data.config import FolderConfig
    from cirray.data.folder import read_folder

    tables = {kind: name for kind, name in _tables(folder).items() if name} if folder.is_dir() else {}
    dataset = read_folder(FolderConfig(root=str(folder), **tables))
    rows = {kind: len(getattr(dataset, kind)) for kind in TABLES}
    flat = not any((folder / part).is_dir() for part in ("labelled", "pool", "gallery"))
    count, pool, gallery = len(dataset.images), len(dataset.pool_ids), bool(dataset.gallery_ids)
    return Found(folder, tables, rows, count, pool, flat, gallery)


def _tables(folder: Path) -> dict[str, str]:
    """Table of the layout -> the one file of another name that has its columns; empty where its own name is taken."""
    from cirray.data.kinds import is_foreign

    files = sorted(path for path in folder.iterdir() if path.is_file() and is_foreign(path.name))
    taken = {path.name.split(".")[0].lower() for path in files}
    found: dict[str, list[str]] = {kind: [] for kind in TABLES}
    for path in files:
        if path.name.split(".")[0].lower() not in TABLES and (kind := _kind(path)):
            found[kind].append(path.name)
    return {kind: names[0] if len(names) == 1 and kind not in taken else "" for kind, names in found.items()}


def _kind(path: Path) -> str:
    """The table that a file is by its columns; empty for none."""
    from cirray.data.tables import read_rows

    for kind in ("captions", "queries" if any(word in path.stem.lower() for word in _QUERY_WORDS) else "triplets"):
        try:
            if next(read_rows(path, TABLES[kind]), None):
                return kind
        except DataError:
            continue
    return ""


def write_project(run: InitRun) -> str:
    """Write the project file.

    Returns: What was found, and the commands that come next.

    Raises ConfigError: the file exists or cannot be written, or the root is none; DataError as `look`.
    """
    out, folder = Path(run.out).expanduser(), Path(run.folder).expanduser().absolute()
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"out is {run.out!r}; the project file's name ends in .yaml.")
    if out.exists():
        raise ConfigError(f"{run.out!r} exists and stays as it is; give another name: out=other.yaml.")
    found = look(folder)
    root = run.root or f"~/cirray/{folder.name or 'project'}"
    root = root if root.startswith(("~", "@")) or not is_local(root) else _home(Path(root).absolute())
    validate(Run, {"root": root})
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(project_text(found, root, run.out))
    except OSError as error:
        raise ConfigError(f"{run.out!r} cannot be written: {error.strerror}.") from None
    counts = f"{found.pictures:,} pictures" + "".join(
        f", {count:,} {kind}" for kind, count in found.rows.items() if count
    )
    first, *rest = [f"cirray {name} {run.out}" for name in next_steps(found)]
    after = ["and after it:", *(f"  {line}" for line in rest)]
    return "\n".join([f"{run.out} is written for {counts}. What to type next:", f"  {first}", *after])


def next_steps(found: Found) -> list[str]:
    """The verbs that make a search service of a folder, in order."""
    story = [*_STORY, *(["evaluate"] if found.rows["queries"] else [])] if found.trains else []
    return [*story, "index", "serve"]


def project_text(found: Found, root: str, name: str) -> str:
    """The project file: YAML with a comment on everything that people change."""
    verb = "finetune" if found.trains else "index"
    lines = [
        f"# A project: your pictures, and the settings of every step. Each command takes it: cirray {verb} {name}",
        f"# A value on the command line wins: cirray {verb} {name} device=cuda",
        f"# `cirray {verb} --help` says what its section takes, `cirray config {verb} {name}` what comes of it all.",
        "",
        f"root: {_quoted(root)}  # every step writes below it; a folder, s3://... or gs://...",
        "# device: cuda  # where models run; each step has its own `device` too",
        "",
        "data:",
        "  format: folder",
        "  folder:",
        f"    root: {_quoted(_home(found.folder))}  # {found.pictures:,} pictures",
        *(_table_line(found, kind, columns) for kind, columns in TABLES.items()),
        "",
        "steps:",
        *(_training(found) if found.trains else []),
        *_searching(found),
    ]
    return "\n".join(lines) + "\n"


def _table_line(found: Found, kind: str, columns: tuple[str, ...]) -> str:
    rows, needed = found.rows[kind], ",".join(columns)
    if kind in found.tables:
        return f"    {kind}: {_quoted(found.tables[kind])}  # {rows:,} rows"
    return f"    # {kind}: {kind}  # " + (f"{rows:,} rows" if rows else f"not there; a table with the columns {needed}")


def _training(found: Found) -> list[str]:
    """The steps that train, as lines."""
    parts = (
        []
        if found.pool
        else ["    parts: [labelled]  # no pool/ of unlabelled pictures, so the labelled ones are paired"]
    )
    if found.flat:
        parts.append("    exclude_parts: []  # one folder is labelled part, pool and gallery at once")
    return [
        *_towers(found),
        "  mine:",
        *parts,
        "    # mining: {policy: {kind: neighbour_band}}  # how pairs are found",
        "  generate:",
        "    # generator: {settings: {decoding: {max_new_tokens: 32}}}  # how texts are written",
        "  pretrain:",
        "    # training: {steps: 300, batch: 128, optimizer: {lr: 2e-3}}",
        "  finetune:",
        "    training:",
        "      objective: finetune  # or ptha, which also needs reverse texts",
        "      # steps: 80",
        "    reverse_texts: []",
        "  evaluate:",
        "    # ks: [1, 5, 10]" if found.rows["queries"] else "    # needs queries (see above)",
    ]


def _towers(found: Found) -> list[str]:
    if not found.rows["captions"]:
        return [
            "  towers:  # without captions none can be trained here: name weights that you have, a folder or a hub id",
            "    # vision: DIR    # a BLIP-2 or CLIP vision model",
            "    # language: DIR  # a causal language model",
            "  train-generator:",
            "    # labels: 500  # fewer triplets than there are",
        ]
    return [
        "  towers:  # small ones, trained on your captions; better: weights you have, as vision: DIR, language: DIR",
        "    vision: train",
        "    vision_training: {objective: captions}",
        "    language: train",
        "    corpus: data",
        "  train-generator:",
        "    generator: {settings: {tuning: full}}  # for a small language model; not where `language` is a large one",
    ]


def _searching(found: Found) -> list[str]:
    images = [f"    images: {_quoted(_home(found.folder))}  # every picture that is searched"]
    model = [
        f"    model: {PUBLIC}  # published weights, not trained: a hub id, a folder, or a name of open_clip",
        "    # weight: 0.5  # the text's share in a query; every query may have its own",
    ]
    return [
        "  index:",
        *([] if found.trains and found.gallery else images),
        *([] if found.trains else model),
        "  serve:",
        "    # port: 8000",
    ]


def _home(folder: Path) -> str:
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
