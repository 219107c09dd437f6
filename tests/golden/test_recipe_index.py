"""`jobs/configs/README.md` has one line for every recipe and overlay: the first sentence of its comment.

To write it anew: `python tests/golden/test_recipe_index.py`.
"""

import re
import runpy
from pathlib import Path

FILES = runpy.run_path(str(Path(__file__).resolve().parents[1] / "fixtures" / "recipe_files.py"))
PAGE = FILES["ROOT"] / "README.md"
FOLDERS = {
    "shapes": "The embedded world, small enough for a CPU",
    "any": "Towers, and weights from elsewhere, for any data set",
    "cirr": "CIRR",
    "fashioniq": "Fashion IQ",
    "nlvr2": "NLVR2, whose images MTST and VDG pair",
    "cc3m": "CC3M: captioned web images",
    "lasco": "LaSCo",
    "circo": "CIRCO",
    "hardware": "Overlays: what other machines change",
}
HEAD = """# Recipes

One file for a data set, stage, method and mode; its name begins with the verb that runs it. As they stand, recipes are
for one machine (outside `shapes/`: one GPU). A second file is laid over the first, such as one of `hardware/`;
assignments come last. `cirray config` prints what all of it resolves to:

    cirray finetune cirr/finetune-sprc hardware/train-8gpu training.seed=1

A run that differs from a recipe in a value or two stands in that recipe's comment, with the assignments to type
("also").

Written by `python tests/golden/test_recipe_index.py` from the recipes' comments.
"""


def line_of(path):
    """`- [NAME](FILE): first sentence (also: what the further runs of its comment write)`."""
    lines = FILES["comment_of"](path)
    comment = " ".join(line.strip() for line in lines if not line.startswith((" - ", "   ")))
    comment = re.sub(r"\s*\([^()]*docs/RECIPES\.md[^()]*\)", "", comment)
    first = re.split(r"\.(?= |$)|; ", comment)[0]
    outs = [word for words in FILES["runs_of"](path).values() for word in words if word.startswith("out=")]
    also = ", ".join(f"`{word.rpartition('/')[2]}`" for word in outs)
    return f"- [{path.stem}]({path.relative_to(PAGE.parent)}): {first}{f' (also: {also})' if also else ''}"


def page():
    """The whole page."""
    found = {path.parent.name for path in PAGE.parent.glob("*/*.yaml")}
    assert found == set(FOLDERS), "a folder of recipes has no title here"
    parts = [HEAD]
    for folder, title in FOLDERS.items():
        lines = [line_of(path) for path in sorted((PAGE.parent / folder).glob("*.yaml"), key=lambda path: path.stem)]
        parts.append("\n".join([f"## {title} (`{folder}/`)", "", *lines]) + "\n")
    return "\n".join(parts)


def test_the_index_has_a_line_for_every_recipe_with_the_first_sentence_of_its_comment():
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
