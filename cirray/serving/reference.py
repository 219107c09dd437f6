"""`/docs`: the OpenAPI document as one page without scripts."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Tree = Mapping[str, Any]
_REF = "#/components/schemas/"
_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title} API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="static/icon.svg"><link rel="stylesheet" href="static/docs.css"></head><body>
<header><h1>{title} {version}: the API</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>. For people: <a href="./">the search page</a>.
Errors are problem documents (RFC 9457); every request may be repeated, after <code>Retry-After</code> seconds where an
answer says so.</p></header><main>"""
_EXAMPLE = """curl -s {url}/v1/search -F image=@photo.jpg -F "text=make it blue" -F k=3
curl -s {url}/v1/search -H "content-type: application/json" -d '{body}'"""


def reference_page(document: Tree, url: str) -> str:
    """The page.

    Args:
        document: OpenAPI document of the application.
        url: where the service is, for the examples.
    """
    info = document["info"]
    parts = [_HEAD.format(title=escape(info["title"]), version=escape(info["version"]))]
    body = json.dumps({"text": "make it blue", "gallery_id": "ID", "k": 3})
    parts.append(f"<h2>Try it</h2><pre>{escape(_EXAMPLE.format(url=url, body=body))}</pre>")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method, path, operation, document)
    return "".join([*parts, "</main></body></html>"])


def _operation(method: str, path: str, operation: Tree, document: Tree) -> Iterator[str]:
    """One route: what it does, takes and answers."""
    yield f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
    rows = [(item["name"], item["schema"], item["in"]) for item in operation.get("parameters", [])]
    if rows:
        yield _table("Parameters", [(name, _kind(schema), place) for name, schema, place in rows])
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield _fields(f"Body, {media}", content["schema"], document)
    answers = []
    for status, answer in operation["responses"].items():
        schemas = [content.get("schema", {}) for content in answer.get("content", {}).values()]
        answers.append((status, answer["description"], _names(schemas)))
        if status == "200":
            for schema in schemas:
                yield _fields("Answer", _resolved(schema, document), document)
    yield _table("Statuses", answers) + "</section>"


def _fields(title: str, schema: Tree, document: Tree) -> str:
    """A table of an object's fields, those of its parts below it."""
    required = schema.get("required", [])
    rows = []
    for name, field in schema.get("properties", {}).items():
        text = field.get("description", "") + (" Required." if name in required and title.startswith("Body") else "")
        rows.append((name, _kind(field), text))
        part = _resolved(field.get("items", field), document)
        for inner, of in part.get("properties", {}).items():
            rows.append((f"{name}.{inner}", _kind(of), of.get("description", "")))
    return _table(title, rows) if rows else ""


def _resolved(schema: Tree, document: Tree) -> Tree:
    name = schema.get("$ref", "").removeprefix(_REF)
    return document["components"]["schemas"][name] if name else schema


def _kind(schema: Tree) -> str:
    """A type in words, with its default."""
    options = [item["type"] for item in schema.get("anyOf", []) if "type" in item]
    kind = schema.get("type") or " or ".join(options) or _names([schema])
    return f"{kind}, {json.dumps(schema['default'])} unless said" if "default" in schema else kind


def _names(schemas: list[Tree]) -> str:
    return ", ".join(schema["$ref"].removeprefix(_REF) for schema in schemas if "$ref" in schema)


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(str(first))}</code></td><td>{escape(second)}</td><td>{escape(third)}</td></tr>"
        for first, second, third in rows
    )
    return f"<h3>{escape(title)}</h3><table>{lines}</table>"
