"""A page of a saved evaluation query by query, alone or beside another. One process, no model."""

from dataclasses import dataclass, replace

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.data.readers import read_dataset
from cirray.evaluation.browse import Limits, render_browser, seen, won_and_lost
from cirray.evaluation.given import plan_for
from cirray.evaluation.rankings import SavedRankings, read_rankings
from cirray.evaluation.spellings import spellings_of
from cirray.evaluation.verdicts import check_list
from cirray.pipelines.evaluation.config import BrowseRun


@dataclass(frozen=True)
class Browser:
    """The page's path, and one line on its content."""

    page: str
    line: str

    def text(self) -> str:
        """The line, then the page."""
        return f"{self.line}\npage: {self.page}"


def run_browse(run: BrowseRun) -> Browser:
    """Write the page. Raises DataError: rankings that cannot be read or lack a query; a data set without queries."""
    dataset = read_dataset(run.data, training=False)
    if not dataset.queries:
        raise DataError(f"Data set {dataset.name!r} has no queries to browse. Add a queries file.")
    saved = [_read(run.run, run.row, run.seed, dataset)]
    if run.other:
        saved.append(_read(run.other, run.other_row or run.row, run.other_seed, dataset))
    names = [run.name, run.other_name]
    rule = dataset.protocol.reference_rule
    runs = [seen(one, dataset.queries, rule, name) for one, name in zip(saved, names, strict=False)]
    limits = Limits(run.pictured, run.listed, run.strip, run.side)
    title = run.title or " and ".join(one.name for one in runs) + f" on {dataset.name}"
    protocol = dataset.protocol
    page = render_browser(title, protocol.describe(), dataset.queries, runs, dataset.images, limits, protocol.ks)
    storage.write_bytes(run.out, page.encode("utf-8"))
    counts = f"{len(dataset.queries):,} queries"
    if len(runs) == 2:
        won, lost = won_and_lost(dataset.queries, runs, 1)
        counts += f"; at rank 1, {runs[1].name} wins {won:,} and loses {lost:,} against {runs[0].name}"
    return Browser(run.out, counts)


def _read(uri: str, row: str, seed: int | None, dataset: CirDataset) -> SavedRankings:
    """Rankings in the data set's own image ids, none of them outside its galleries."""
    spellings, saved = spellings_of(dataset), read_rankings(uri, row, seed)
    lists = spellings.lists(saved.lists)
    plan, _ = plan_for(dataset, dataset.protocol, (name for ids in lists.values() for name in ids), spellings, False)
    for query in plan.queries:
        gallery = plan.gallery(query)
        check_list(query, lists.get(query.query_id, ()), gallery.columns, gallery.copies)
    return replace(saved, lists=lists)
