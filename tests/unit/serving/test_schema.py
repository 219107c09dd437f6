"""The service does what its OpenAPI document says: schemathesis with all its checks, in this process."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection

from cirray.serving.api import make_api
from cirray.serving.config import ServeArgs

SERVED = []
ACCEPTED = {"expected-statuses": [200, 304, 400, 403, 404, 422]}
"""A picture, a filter or an address may be no good, or a file not be this service's to read, in ways that no schema can
say."""
RULES = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": ACCEPTED}})
SCHEMA = schemathesis.openapi.from_asgi(
    "/openapi.json", make_api(lambda: SERVED[-1], ServeArgs(writes=True)), config=RULES
)


@schemathesis.serializer("application/x-ndjson")
def line(context, value):
    """A body of one line."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.fixture(autouse=True)
def served(written_service):
    SERVED[:] = [written_service]


@SCHEMA.parametrize()
@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_does_what_its_document_says(case):
    one_by_one = case.path.endswith(":batch")  # a query that is wrong spoils no other one, and not the batch
    case.call_and_validate(excluded_checks=[negative_data_rejection] if one_by_one else [])
