"""Notebooks as pages of the site: text, code, and the outputs that were kept."""

import html
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a Markdown page for every notebook; the notebook itself stays beside it, to download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix("ipynb") + "md"
            files.append(File.generated(config, page, content=markdown(Path(str(file.abs_src_path)))))
    return files


def on_page_markdown(text: str, **_: Any) -> str:
    """Links to a notebook, which is what readers of the repository open, lead to its page."""
    return re.sub(r"\]\(([\w/.-]+)\.ipynb\)", r"](\g<1>.md)", text)


def markdown(path: Path) -> str:
    """A notebook as Markdown, with a link to the file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in cell_parts(cell)]
    parts.insert(1, f'<p><a href="../{path.name}" download>Download this notebook</a></p>')
    return "\n\n".join(parts) + "\n"


def cell_parts(cell: dict[str, Any]) -> list[str]:
    """One cell as pieces of Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    return [f"```python\n{source}\n```", *map(shown, cell["outputs"])]


def shown(output: dict[str, Any]) -> str:
    """One output: a picture, HTML as it is, or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        return f"<div>{''.join(data['text/html'])}</div>"
    return f"<pre><code>{html.escape(''.join(data['text/plain']).rstrip())}</code></pre>"
