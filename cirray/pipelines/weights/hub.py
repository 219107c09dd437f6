"""Models on the hub: what a card tells it, and folders sent to it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCardData

from cirray.core.artifacts import Manifest
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.log import get_logger
from cirray.core.places import is_hub_id
from cirray.models.sources.hub import is_repository
from cirray.pipelines.weights.config import ExportRun

_LOGGER = get_logger("pipelines.hub")
_HERE_ALONE = ["manifest.json", "stage.json"]
"""Files that name places of this machine."""


def check_id(text: str) -> None:
    """Refuse what is no hub id. Raises ConfigError: naming it."""
    if not is_hub_id(text):
        raise ConfigError(f"push={text!r} is no hub id; write OWNER/NAME, e.g. my-name/my-retriever.")


def card_metadata(run: ExportRun, kind: str, source: Manifest, reports: Iterable[Manifest]) -> str:
    """The metadata block of a model card as YAML; figures stand in it as the hub's `model-index`.

    Published weights that were opened without training are the model's base model.
    """
    opened = str(source.config.get("source", ""))
    bases = run.base_models or ((opened,) if is_repository(opened) else ())
    data = ModelCardData(
        library_name="cirray", license=run.license, tags=["composed-image-retrieval", "cirray", kind],
        base_model=list(bases) or None, datasets=list(run.datasets) or None, model_name=run.name,
        eval_results=[result for report in reports for result in _results(report)] or None,
    )  # fmt: skip
    return str(data.to_yaml())


def _results(report: Manifest) -> Iterator[EvalResult]:
    dataset = str((report.config.get("data") or {}).get("format", ""))
    for name, value in report.metrics.items():
        if dataset and isinstance(value, int | float):
            yield EvalResult(
                task_type="composed-image-retrieval", task_name="Composed image retrieval", dataset_type=dataset,
                dataset_name=str(report.extra.get("protocol") or dataset), metric_type="recall", metric_name=name,
                metric_value=value,
            )  # fmt: skip


def push_folder(folder: Path, repository: str, private: bool, kind: str = "model") -> str:
    """Upload a folder's files, which makes the repository if it is not there; returns its address.

    The manifest stays here, since it names places of this machine.

    Raises ArtifactError when the hub does not take it; the folder stays as it is.
    """
    api = HfApi()
    try:
        address = str(api.create_repo(repository, repo_type=kind, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=str(folder), ignore_patterns=_HERE_ALONE,
            commit_message="Written by cirray",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever the hub's library and its network raise
        raise ArtifactError(
            f"The folder {str(folder)!r} is written, but the hub did not take it as {repository!r} "
            f"({type(error).__name__}). See that it can be reached, log in (hf auth login, or HF_TOKEN) as one who "
            "may write there, and give the same command again."
        ) from None
    _LOGGER.info("uploaded to %s", address)
    return address
