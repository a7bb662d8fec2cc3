"""Whether a document is OpenRPC, by the meta-schema that its makers publish on npm, and whether results fit it.

The packages are those of tests/js, which `scripts/test` installs. Every problem is one line for a person.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

JS: Final = Path(__file__).resolve().parents[1] / "js"
PRINT_SCHEMAS: Final = """
const { openrpcDocument } = require("@open-rpc/meta-schema");
const { jsonSchema, default: whole } = require("@json-schema-tools/meta-schema");
console.log(JSON.stringify([openrpcDocument, whole ?? jsonSchema]));
"""

Document = Mapping[str, Any]


def document_problems(document: Document) -> list[str]:
    """Say where a document is not OpenRPC."""
    return _problems(_meta_validator(), document)


def result_problems(document: Document, method: str, result: object) -> list[str]:
    """Say where a result is not what the document declares of this method."""
    schema = _described(document, method)["result"]["schema"]
    return _problems(_validator(document, schema), result)


def params_problems(document: Document, method: str, params: Mapping[str, object]) -> list[str]:
    """Say where parameters by name are not what the document declares of this method."""
    declared = _described(document, method)["params"]
    schema = {
        "type": "object",
        "properties": {one["name"]: one["schema"] for one in declared},
        "required": [one["name"] for one in declared if one["required"]],
        "additionalProperties": False,
    }
    return _problems(_validator(document, schema), params)


def _described(document: Document, method: str) -> Document:
    found: list[Document] = [entry for entry in document["methods"] if entry["name"] == method]
    assert len(found) == 1, f"{len(found)} entries for {method}"
    return found[0]


def _validator(document: Document, schema: Document) -> Validator:
    """A validator of one schema of the document, which may refer to the document's components."""
    return Draft202012Validator({"components": document["components"], **schema})


@cache
def _meta_validator() -> Validator:
    node = shutil.which("node")
    assert node is not None, "node is not installed: see scripts/test"
    printed = subprocess.run([node, "-e", PRINT_SCHEMAS], cwd=JS, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, f"tests/js has not its packages: run scripts/test\n{printed.stderr}"
    openrpc, json_schema = json.loads(printed.stdout)
    known = Resource.from_contents(json_schema, default_specification=DRAFT7)
    # The first of the two names is the one that the meta-schema refers to.
    names = ("https://meta.json-schema.tools", "https://meta.json-schema.tools/")
    return Draft7Validator(openrpc, registry=Registry().with_resources((name, known) for name in names))


def _problems(validator: Validator, instance: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]
