"""The HTTP interface as clients see it: a change here is a change of the interface and needs a CHANGELOG line.

To accept one: `python tests/golden/test_openapi.py` writes the file anew.
"""

import json
from pathlib import Path

from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs

GOLDEN = Path(__file__).with_name("openapi.json")


def interface():
    """Paths, parameters, bodies, answers and fields, without the wording that libraries add."""
    document = make_api(lambda: None, ServeArgs()).openapi()
    schemas = document["components"]["schemas"]
    ours = {name: schema for name, schema in schemas.items() if "Validation" not in name}
    return {
        "paths": {
            f"{method.upper()} {path}": {
                "parameters": sorted(item["name"] for item in operation.get("parameters", [])),
                "bodies": {
                    kind: sorted(body["schema"].get("properties", ())) for kind, body in bodies(operation).items()
                },
                "answers": sorted(operation["responses"]),
            }
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        },
        "fields": {name: sorted(schema["properties"]) for name, schema in ours.items()},
    }


def bodies(operation):
    return operation.get("requestBody", {}).get("content", {})


def test_the_interface_is_the_recorded_one():
    assert interface() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(interface(), indent=1, sort_keys=True) + "\n")
