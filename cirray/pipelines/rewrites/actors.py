"""Ray Data's worker of the rewrite stage: query texts of a part in, a part of a rewrites artifact out."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from cirray.core.errors import ArtifactError
from cirray.generators.base import told
from cirray.generators.rewriters.base import Ask, RewriterSetup, rewrite_key
from cirray.generators.rewriters.config import REWRITERS, RewriterChoice
from cirray.pipelines.cluster.answers import Answers
from cirray.pipelines.cluster.streaming import Columns
from cirray.triplets.rewrites import rewrite_table, write_rewrites
from cirray.types import part_name

COLUMNS = ("query_id", "reference_id", "modification", "caption")


class RewriteTexts:
    """Actor: one part's texts. A text with a known key costs no call of the model, a repeated text one."""

    def __init__(
        self, rewriter: RewriterChoice, setup: RewriterSetup, work_uri: str, reuse: Sequence[str] = ()
    ) -> None:
        """Make the rewriter and read known texts (once per actor); rows of the folders `reuse` are taken over by their
        keys.
        """
        self._rewriter = REWRITERS.get(rewriter.kind)(rewriter.settings, setup)
        self._work_uri, self._prompt = work_uri, rewriter.prompt_version
        self._answers = Answers(work_uri, setup.batch)
        self._known = {row["key"]: row["text"] for uri in reuse for row in rewrite_table(uri).to_pylist()}

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Rewrite and write one part.

        Args:
            columns: `part`, `part_rows`, `query_id`, `reference_id`, `modification`, `caption` (empty: none).

        Returns: `rejected` texts, and questions `asked` of the rewriter.
        """
        values = zip(*(columns[name].tolist() for name in COLUMNS), strict=True)
        part = part_name(columns["part"][0])
        rows, rejected, asked = self.rows(part, [dict(zip(COLUMNS, row, strict=True)) for row in values])
        write_rewrites(self._work_uri, part, rows, rejected)
        return {"rejected": len(rejected), "asked": asked}

    def rows(
        self, part: str, items: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        """Rows of texts, rows of rejections (together one an item), and how many questions were asked now.

        Raises ArtifactError when the rewriter does not return one text per question.
        """
        asks = [Ask(item["caption"], item["modification"]) for item in items]
        keys = [rewrite_key(ask, self._prompt, self._rewriter.digest) for ask in asks]
        fresh = {
            key: ask for key, ask in zip(keys, asks, strict=True) if ask.caption.strip() and key not in self._known
        }
        answers, made = self._answers.ask(part, fresh, self._rewrite, itemgetter(0))
        texts = self._known | {key: text for key, (text, _) in answers.items()}
        rows, rejected = [], []
        for item, key in zip(items, keys, strict=True):
            if texts.get(key):
                own = {"text": texts[key], "rewriter": self._rewriter.digest, "prompt_version": self._prompt}
                rows.append({**item, **own, "key": key})
            else:
                reason = answers[key][1] if item["caption"].strip() else "the reference has no caption"
                rejected.append({**{name: item[name] for name in COLUMNS[:3]}, "reason": reason})
        return rows, rejected, len(made)

    def _rewrite(self, asks: Sequence[Ask]) -> list[tuple[str, str]]:
        """Text, or the reason why there is none, of each."""
        made = self._rewriter.rewrite(asks)
        if len(made) != len(asks):
            raise ArtifactError(f"The rewriter returned {len(made)} texts for {len(asks)} questions.")
        return [told(written, "the rewriter wrote nothing") for written in made]
