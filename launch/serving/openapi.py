"""Description of the server's endpoints as an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.serving import answers, tensors
from launch.serving.models import Model
from launch.serving.options import Options

# Status -> description of errors.
ERRORS = {
    "400": "The body is malformed.",
    "401": "The token is missing or wrong.",
    "404": "There is no such model, or the model does not support this endpoint.",
    "405": "The method is not supported.",
    "408": "The body arrived too slowly.",
    "413": "The body is too large.",
    "415": "The media type of the body is not supported.",
    "422": "A field is invalid.",
    "429": "The queue of the model is full.",
    "500": "The server failed; its log has the reason.",
    "503": "Models are being compiled.",
    "504": "There was no answer in time.",
}
_BODY = ("400", "404", "408", "413", "415", "422", "429", "500", "503", "504")


def document(models: Iterable[Model], options: Options) -> dict[str, Any]:
    """Returns the OpenAPI document as a JSON value.

    Args:
      models: models of the server.
      options: options of the server.
    """
    models = list(models)
    found = {
        "openapi": "3.1.0",
        "info": {
            "title": "attention",
            "version": "1",
            "summary": "Exported models: Open Inference Protocol 2, tasks, health and metrics.",
        },
        "paths": {**_server_paths(), **_model_paths(models)},
        "components": {"schemas": _schemas(models, options)},
    }
    secured = bool(options.token)
    if secured:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            public = path in ("/", "/v2/health/live", "/v2/health/ready")
            if secured and not public:
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _error("401")
    return found


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict[str, Any], media: str = "application/json") -> dict[str, Any]:
    return {media: {"schema": schema}}


def _success(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": content}


def _error(status: str) -> dict[str, Any]:
    found = {"description": ERRORS[status], "content": _content(_reference("Error"))}
    if status in ("429", "503"):
        seconds = {"type": "integer", "minimum": 1}
        found["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": seconds}}
    return found


def _operation(
    name: str, summary: str, success: dict[str, Any], errors: Iterable[str], **rest: Any
) -> dict[str, Any]:
    responses = {"200": success, **{status: _error(status) for status in errors}}
    return {"operationId": name, "summary": summary, "responses": responses, **rest}


def _object(properties: dict[str, Any], required: Iterable[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties if required is None else required),
        "additionalProperties": False,
    }


def _server_paths() -> dict[str, Any]:
    text, flag = {"type": "string"}, {"type": "boolean"}
    described = _object(
        {"name": text, "task": text, "input": text, "ready": flag, "attention": flag,
         "stream": flag}
    )  # fmt: skip
    server = _object(
        {"name": text, "version": text, "extensions": {"type": "array", "items": text}}
    )

    def get(name: str, summary: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
        return {"get": _operation(name, summary, _success(summary, content), errors)}

    return {
        "/": get("page", "The page to try a model.", _content(text, "text/html")),
        "/openapi.json": get("document", "This document.", _content({"type": "object"})),
        "/metrics": get("metrics", "Metrics for Prometheus.", _content(text, "text/plain")),
        "/models": get(
            "models",
            "The models.",
            _content(_object({"models": {"type": "array", "items": described}})),
        ),
        "/v2": get("server", "Name and version of the server.", _content(server)),
        "/v2/health/live": get(
            "live", "The server is live.", _content(_object({"live": {"const": True}}))
        ),
        "/v2/health/ready": get(
            "ready", "All models are ready.", _content(_object({"ready": {"const": True}})), "503"
        ),
    }


def _model_paths(models: list[Model]) -> dict[str, Any]:
    names = [model.name for model in models]
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Name of a model.",
        "schema": {"type": "string", "enum": names},
    }
    metadata = _success("Inputs and outputs.", _content(_reference("Metadata")))
    is_ready = _content(_object({"name": {"type": "string"}, "ready": {"const": True}}))
    inference = {"required": True, "content": _content(_reference("InferenceRequest"))}
    inputs = {"required": True, "content": _content(_reference("TaskRequest"))}
    if any(model.kind != "text" for model in models):
        form = _object(
            {
                "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                "parameters": {"type": "string", "contentMediaType": "application/json"},
            },
            ["file"],
        )
        inputs["content"] |= _content(form, "multipart/form-data")
    events = _content({"type": "string"}, "text/event-stream")
    paths = {
        "/v2/models/{name}": {
            "get": _operation("model", "Input and output arrays of a model.", metadata, ("404",))
        },
        "/v2/models/{name}/ready": {
            "get": _operation(
                "model_ready", "A model is ready.", _success("It is ready.", is_ready),
                ("404", "503"),
            )
        },
        "/v2/models/{name}/infer": {
            "post": _operation(
                "infer", "Runs a model on tensors.",
                _success("Tensors.", _content(_reference("InferenceResponse"))), _BODY,
                requestBody=inference,
            )
        },
        "/models/{name}": {
            "post": _operation(
                "predict", "Answers texts or files.",
                _success("Answers, in the shape of the task.", _content(_reference("Answer"))),
                _BODY, requestBody=inputs,
            )
        },
        "/models/{name}/stream": {
            "post": _operation(
                "stream", "Answers texts or files with generated text, as server-sent events.",
                _success(
                    "Events with index and answer: `partial` after each token of models that "
                    "generate token by token, greedily, then `answer`; at the end `done`, or "
                    "`error`.", events,
                ),
                _BODY, requestBody=inputs,
            )
        },
        "/models/{name}/attention": {
            "post": _operation(
                "attention", "Returns the attention weights of one input.",
                _success("Weights by name.", _content(_reference("Attention"))), _BODY,
                requestBody=inputs,
            )
        },
    }  # fmt: skip
    return {path: {**found, "parameters": [name]} for path, found in paths.items()}


def _schemas(models: list[Model], options: Options) -> dict[str, Any]:
    text = {"type": "string"}
    datatype = {"type": "string", "enum": sorted(tensors.DATATYPES.values())}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}
    sizes = {"type": "array", "items": {"type": "integer", "minimum": -1}}
    empty = {"type": "object", "maxProperties": 0}
    one = {"type": "string"}
    if all(model.kind == "text" for model in models):
        one["maxLength"] = options.max_text
    described = _object({"name": text, "datatype": datatype, "shape": sizes})
    return {
        "Error": _object({"error": text, "field": {"type": ["string", "null"]}}),
        "Metadata": _object(
            {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": described},
                "outputs": {"type": "array", "items": described},
            }
        ),
        "InferenceRequest": _object(
            {
                "id": text,
                "parameters": empty,
                "inputs": {"type": "array", "items": _reference("InputTensor"), "minItems": 1},
                "outputs": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object({"name": text, "parameters": empty}, ["name"]),
                },
            },
            ["inputs"],
        ),
        "InputTensor": _object(
            {
                "name": {
                    "type": "string",
                    "enum": sorted({n for m in models for n in m.export.signature["inputs"]}),
                },
                "shape": shape,
                "datatype": datatype,
                "data": {"type": "array", "description": "Row-major values, flat or nested."},
                "parameters": empty,
            },
            ["name", "shape", "datatype", "data"],
        ),
        "OutputTensor": _object(
            {
                "name": text,
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "datatype": datatype,
                "data": {
                    "type": "array",
                    "description": "Row-major values; null for numbers that are not finite.",
                    "items": {"type": ["number", "boolean", "null"]},
                },
            }
        ),
        "InferenceResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": {"type": "array", "items": _reference("OutputTensor")},
            },
            ["model_name", "model_version", "outputs"],
        ),
        "TaskRequest": _object(
            {
                "inputs": {
                    "description": "A text, or base64 of the content of a file; or a list.",
                    "oneOf": [
                        one,
                        {
                            "type": "array",
                            "items": one,
                            "minItems": 1,
                            "maxItems": options.max_queue,
                        },
                    ],
                },
                "parameters": _parameters(models),
            },
            ["inputs"],
        ),
        "Answer": {
            "description": "Answers of " + "; ".join(f"{m.name}: {m.pipeline}" for m in models),
            "type": ["array", "object"],
        },
        "Attention": _object(
            {
                "tokens": {"type": ["array", "null"], "items": text},
                "words": {
                    "description": "Words of a text; null if the tokens do not stand for words.",
                    "type": ["array", "null"],
                    "items": text,
                },
                "spans": {
                    "description": "Range [first, end) of the words of each token, as indices.",
                    "type": ["array", "null"],
                    "items": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0},
                        "minItems": 2,
                        "maxItems": 2,
                    },
                },
                "attention": {
                    "type": "object",
                    "additionalProperties": _object(
                        {
                            "shape": {"type": "array", "items": {"type": "integer"}},
                            "data": {"type": "array", "items": {"type": ["number", "null"]}},
                        }
                    ),
                },
            }
        ),
    }


def _parameters(models: list[Model]) -> dict[str, Any]:
    """Returns the schema of the field "parameters" of a request."""
    if not any(answers.is_ranked(model.task) for model in models):
        return {"type": ["object", "null"], "maxProperties": 0}
    found = _object({"top_k": {"type": ["integer", "null"], "minimum": 1}}, [])
    return {**found, "type": ["object", "null"]}
