"""The OpenAPI schema as generators of clients need it. That they really do with it what they should: tests/clients."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from wbar.job_request import JobRequest
from wbar_service.app import create_app
from wbar_service.settings import ServiceSettings

REF = "#/components/schemas/"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("schema")
    app = create_app(
        ServiceSettings(
            database_url=f"sqlite:///{folder / 'wbar.db'}",
            broker_url=f"redis+socket://{folder / 'none.sock'}",
            blobs_url=f"file://{folder / 'blobs'}",
        )
    )
    yield app.openapi()
    app.state.store.close()


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for name, child in node.items():
            if name not in ("example", "examples"):
                yield from nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from nodes(child)


def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["operationId"]: one for path in schema["paths"].values() for one in path.values()}


def test_operations_have_names(schema: dict[str, Any]) -> None:
    assert set(operations(schema)) == {
        "createCheckpoint", "listCheckpoints", "getCheckpoint", "deleteCheckpoint", "getCheckpointContent",
        "createDataset", "listDatasets", "getDataset", "deleteDataset",
        "createJob", "listJobs", "getJob", "deleteJob", "cancelJob", "pauseJob", "resumeJob",
        "finishJob", "cloneJob",
        "listJobEvents", "getJobMetrics", "listJobSnapshots", "getJobSnapshotWeights", "getJobReport", "getJobWeights",
        "getJobLosses", "getJobProbe", "predictImages", "getJobCard", "getJobSignature", "getDatasetSamples",
        "createMerge", "listMerges", "getMerge", "cancelMerge", "deleteMerge", "getMergeWeights",
        "createStudy", "listStudies", "getStudy", "getStudyReport", "cancelStudy", "pauseStudy", "resumeStudy", "deleteStudy",
        "createKey", "listKeys", "getKey", "deleteKey", "createSignInLink", "listWorkers",
        "createWebhook", "listWebhooks", "getWebhook", "deleteWebhook",
        "rotateWebhookSecret", "enableWebhook", "pingWebhook",
        "listWebhookDeliveries", "getWebhookDelivery", "replayWebhookDelivery",
        "createUpload", "listUploads", "getUpload", "appendToUpload", "deleteUpload",
        "listArchitectures", "getHealth", "getReadiness", "getMetrics",
    }  # fmt: skip


def test_lists_are_called_by_what_they_hold(schema: dict[str, Any]) -> None:
    pages = {name for name in schema["components"]["schemas"] if "Page" in name}
    assert pages == {
        "CheckpointPage",
        "DatasetPage",
        "JobPage",
        "EventPage",
        "SnapshotPage",
        "MetricsPointPage",
        "ApiKeyPage",
        "WorkerPage",
        "WebhookPage",
        "DeliveryPage",
        "UploadPage",
        "MergePage",
        "StudyPage",
    }


def test_a_method_is_told_by_its_type(schema: dict[str, Any]) -> None:
    components = schema["components"]["schemas"]
    for holder in ("JobRequest", "Job"):
        method = components[holder]["properties"]["method"]
        assert method["discriminator"]["propertyName"] == "type"
        mapping = method["discriminator"]["mapping"]
        assert set(mapping) == {"cyclic_swa", "auto", "swa", "ema", "lawa", "none", "soup"}
        assert {member["$ref"] for member in method["oneOf"]} == set(mapping.values())
        for kind, member in mapping.items():
            described = components[member.removeprefix(REF)]
            assert described["properties"]["type"]["enum"] == [kind]
            assert "type" in described["required"]


def test_nothing_is_written_in_a_form_that_generators_do_not_know(schema: dict[str, Any]) -> None:
    for node in nodes(schema):
        assert "const" not in node, node
        assert "prefixItems" not in node, node
    components = schema["components"]["schemas"]
    betas = components["Optimizer"]["properties"]["betas"]
    assert (betas["type"], betas["items"], betas["minItems"], betas["maxItems"]) == (
        "array", {"type": "number"}, 2, 2,
    )  # fmt: skip
    assert {"type": "string", "enum": ["auto"]} in components["LowPhase"]["properties"]["lr"]["anyOf"]


def test_a_request_needs_what_the_service_needs_and_no_more(schema: dict[str, Any]) -> None:
    components = schema["components"]["schemas"]
    assert components["JobRequest"]["required"] == ["checkpoint", "dataset"]
    assert "required" not in components["Recipe"]
    for name in ("JobRequest", "Recipe", "Optimizer", "CyclicSwa", "HighPhase", "DatasetSource"):
        for field, described in components[name]["properties"].items():
            assert "default" not in described, f"{name}.{field}"
    assert "Default: `6`." in components["CyclicSwa"]["properties"]["cycles"]["description"]


def test_no_parameter_can_be_null(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema).items():
        for parameter in operation.get("parameters", []):
            assert {"type": "null"} not in list(nodes(parameter["schema"])), (name, parameter["name"])


def test_every_answer_says_what_it_holds(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema).items():
        for status, answer in operation["responses"].items():
            if status in ("204", "304", "307"):
                continue  # no content
            assert answer["content"], (name, status)
            assert all(content["schema"] for content in answer["content"].values()), (name, status)
            problem = int(status) >= 400 and name != "getReadiness"
            assert ("application/problem+json" in answer["content"]) == problem, (name, status)
    assert set(operations(schema)["getJobReport"]["responses"]["200"]["content"]) == {"text/html"}
    assert set(operations(schema)["getJobWeights"]["responses"]["206"]["content"]) == {"application/octet-stream"}
    assert "Last-Modified" in operations(schema)["getJobWeights"]["responses"]["200"]["headers"]


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(schema) if isinstance(node.get("$ref"), str)}
    assert {reference.removeprefix(REF) for reference in references} <= set(schema["components"]["schemas"])


def test_the_examples_fit_the_schema(schema: dict[str, Any]) -> None:
    components = schema["components"]["schemas"]
    for name, component in components.items():
        for example in [*component.get("examples", []), *([component["example"]] if "example" in component else [])]:
            jsonschema.validate(example, {"$ref": REF + name, "components": schema["components"]})


@pytest.mark.parametrize(
    "sent",
    [
        {"method": None, "recipe": None, "metadata": None, "seed": None, "name": None, "swag": None},
        {"method": {"type": None, "high": None, "low": None, "cycles": None, "pull": None}},
        {"recipe": {"optimizer": None, "batch_size": None, "freeze": None, "distillation": None}},
        {"recipe": {"optimizer": {"name": None, "betas": None}}},
    ],
)
def test_null_stands_for_the_default(sent: dict[str, Any]) -> None:
    least = {"checkpoint": "ckpt_1", "dataset": "ds_1"}
    assert JobRequest.model_validate(least | sent) == JobRequest.model_validate(least)


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        ({"checkpoint": None}, ("checkpoint",)),
        ({"method": {"type": "soup", "checkpoints": None}}, ("method", "soup", "checkpoints")),
        ({"recipe": {"typo": None}}, ("recipe", "typo")),
    ],
)
def test_null_does_not_stand_for_what_is_required_or_unknown(sent: dict[str, Any], place: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="validation error") as raised:
        JobRequest.model_validate({"checkpoint": "ckpt_1", "dataset": "ds_1"} | sent)
    assert [error["loc"] for error in raised.value.errors()] == [place]
