"""The ASGI application: endpoints for tasks, Open Inference Protocol, web page and metrics.

https://github.com/open-inference/open-inference-protocol, version 2, JSON data.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from launch.exports.reader import Export, Raw, Row
from launch.serving import answers, openapi, tensors
from launch.serving.metrics import CONTENT_TYPE, Metrics
from launch.serving.models import Model
from launch.serving.options import Options
from launch.serving.problems import RETRY_S, Problem, invalid, known_keys
from launch.serving.requests import Bodies, check_content_type, content_type, read_form
from launch.serving.responses import JSON, Common, as_json, on_http_error, on_problem

VERSION = "1"
EXTENSIONS: list[str] = []
# Seconds that running programs may take after the server has stopped.
STOP_S = 5.0
# Seconds that browsers keep the answer to a preflight request.
_CORS_S = 600
# Seconds after which the server begins to watch whether a client that waits for an answer has
# closed its connection.
_PATIENCE_S = 0.1


class _Endpoint:
    """ASGI application that answers requests by a function.

    If a route had a plain function, Starlette would handle its errors twice: around the function
    and in the middleware.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]):
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send))
        await response(scope, receive, send)


def _named(app: ASGIApp, name: str) -> ASGIApp:
    """Wraps an application so that it receives a model's name as the path parameter "name"."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_params"] = {"name": name}
        await app(scope, receive, send)

    return run


class Application:
    """Endpoints of the server and the models behind them.

    Attributes:
      models: models by name.
      metrics: metrics of the server.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        options: Options,
        failed: Callable[[str, BaseException], None] = lambda name, error: None,
    ):
        """Creates a model for each export; no program is compiled before the server starts.

        Args:
          exports: exports by model name.
          options: options of the server.
          failed: called with the name of a model that cannot be compiled, and the error.
        """
        self._options = options
        self.metrics = Metrics(options.max_batch)
        self.models = {
            name: Model(name, export, options, self.metrics, functools.partial(failed, name))
            for name, export in exports.items()
        }
        self._bodies = Bodies(options)
        self._page, self._policy = _page()
        self._document = as_json(openapi.document(self.models.values(), options))

    @property
    def ready(self) -> bool:
        """True if the programs of all models are compiled."""
        return all(model.ready for model in self.models.values())

    def asgi(self) -> Starlette:
        """Returns the ASGI application, which starts and stops the models."""
        predict = self._model_route("/models/{name}", self._predict)
        # Routes are tried in this order, so the frequent ones are first.
        routes = [
            predict,
            self._model_route("/v2/models/{name}/infer", self._infer, files=False),
            self._route("/", self._get_page),
            self._route("/openapi.json", self._get_document),
            self._route("/metrics", self._get_metrics),
            self._route("/models", self._get_models),
            self._model_route("/models/{name}/stream", self._stream),
            self._model_route("/models/{name}/attention", self._attention),
            self._route("/v2", self._get_server),
            self._route("/v2/health/live", self._get_live),
            self._route("/v2/health/ready", self._get_ready),
            self._route("/v2/models/{name}", self._get_model),
            self._route("/v2/models/{name}/ready", self._get_model_ready),
        ]
        direct = {f"/models/{name}": _named(predict.app, name) for name in self.models}
        options = {"token": self._options.token, "metrics": self.metrics, "direct": direct}
        middleware = [Middleware(Common, **options)]
        if self._options.cors_origin:
            cors = Middleware(
                CORSMiddleware,
                allow_origins=[self._options.cors_origin],
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                max_age=_CORS_S,
            )
            middleware.insert(0, cors)
        app = Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers={Problem: on_problem, HTTPException: on_http_error},
            lifespan=self._lifespan,
        )
        app.router.redirect_slashes = False
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for model in self.models.values():
            model.start()
        yield
        deadline = time.monotonic() + STOP_S
        for model in self.models.values():
            await asyncio.to_thread(model.stop, max(0.0, deadline - time.monotonic()))

    def _route(self, path: str, answer: Callable[[Request], Awaitable[Response]]) -> Route:
        async def endpoint(request: Request) -> Response:
            request.scope["route_template"] = path
            return await answer(request)

        return Route(path, endpoint, methods=["GET"], name=path)

    def _model_route(
        self,
        path: str,
        answer: Callable[[Request, Model, bytes], Awaitable[Response]],
        *,
        files: bool = True,
    ) -> Route:
        """Returns a route for POST requests to a model.

        Args:
          path: path with the placeholder {name} for the model.
          answer: function of request, model and body that returns the response.
          files: whether models whose inputs are files also accept a multipart form as the body.
        """

        async def endpoint(request: Request) -> Response:
            request.scope["route_template"] = path
            start, model = time.perf_counter(), self._model(request)
            known = ["application/json"]
            if files and model.kind != "text":
                known.append("multipart/form-data")
            check_content_type(request, *known)
            model.check_free()
            body = await self._bodies.read(request)
            try:
                response = await answer(request, model, body)
            finally:
                self._bodies.release(body)
            model.observe_seconds(time.perf_counter() - start)
            return response

        return Route(path, _Endpoint(endpoint), methods=["POST"], name=path)

    def _model(self, request: Request) -> Model:
        """Returns the model that is named in the path of a request.

        Raises:
          Problem: there is no model of this name.
        """
        found = self.models.get(request.path_params["name"])
        if found is None:
            raise Problem(
                404, f"no model is called {request.path_params['name'][:80]!r}; see /models", "name"
            )
        return found

    # ------------------------------------------------------------ page, metrics, models

    async def _get_page(self, request: Request) -> Response:
        headers = {
            "Content-Security-Policy": self._policy,
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
        }
        return Response(self._page, media_type="text/html; charset=utf-8", headers=headers)

    async def _get_document(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _get_models(self, request: Request) -> Response:
        return JSON({"models": [self._described(model) for model in self.models.values()]})

    def _described(self, model: Model) -> dict[str, Any]:
        return {
            "name": model.name,
            "task": model.pipeline,
            "input": model.kind,
            "ready": model.ready,
            "attention": model.has_attention,
            "stream": model.generates,
        }

    # ------------------------------------------------------------ Open Inference Protocol

    async def _get_server(self, request: Request) -> Response:
        return JSON({"name": "attention", "version": VERSION, "extensions": EXTENSIONS})

    async def _get_live(self, request: Request) -> Response:
        return JSON({"live": True})

    async def _get_ready(self, request: Request) -> Response:
        if not self.ready:
            raise _not_ready("models are being compiled")
        return JSON({"ready": True})

    async def _get_model(self, request: Request) -> Response:
        model = self._model(request)
        signature = model.export.signature
        return JSON(
            {
                "name": model.name,
                "versions": [VERSION],
                "platform": "onnxruntime_onnx" if model.export.is_onnx else "jax_stablehlo",
                "inputs": tensors.metadata(signature["inputs"]),
                "outputs": tensors.metadata(signature["outputs"]),
            }
        )

    async def _get_model_ready(self, request: Request) -> Response:
        model = self._model(request)
        if not model.ready:
            raise _not_ready(f"model {model.name} is being compiled")
        return JSON({"name": model.name, "ready": True})

    async def _infer(self, request: Request, model: Model, body: bytes) -> Response:
        read = functools.partial(self._tensors, model)
        rows, names, identity = await self._bodies.parse(body, read)
        try:
            model.export.bucket({**rows[0], "raw": ""})
        except ValueError as error:
            raise invalid(f"inputs: {model.public(str(error))}", "inputs") from None
        outputs = await _unless_gone(request, model.outputs(rows))
        answer = {"model_name": model.name, "model_version": VERSION, **identity}
        found = await asyncio.to_thread(tensors.write_outputs, outputs, names)
        return JSON({**answer, "outputs": found})

    def _tensors(self, model: Model, given: Any) -> tuple[list[Row], list[str], dict[str, str]]:
        """Reads a request with tensors.

        Returns:
          Rows of input arrays, names of the requested outputs, and a dict with the id of the
          request if it has one.
        """
        known_keys(given, ("id", "inputs", "outputs", "parameters"), "body")
        if not isinstance(given.get("id", ""), str):
            raise invalid("id: expected a string", "id")
        if given.get("parameters"):
            raise invalid("parameters: not supported; leave them out", "parameters")
        signature = model.export.signature
        names = tensors.output_names(given.get("outputs"), list(signature["outputs"]))
        programs = signature["programs"]["predict"]
        longest = {
            size: max(program["sizes"][size] for program in programs)
            for size in programs[-1]["sizes"]
        }
        rows = tensors.read_inputs(
            given.get("inputs"), signature["inputs"], longest, self._options.max_queue
        )
        return rows, names, {"id": given["id"]} if "id" in given else {}

    # ------------------------------------------------------------ tasks

    async def _predict(self, request: Request, model: Model, body: bytes) -> Response:
        raw, fields, many, parameters = await self._inputs(request, model, body)
        if model.is_prompt(raw):
            items = await model.answer_promptly(raw, fields)
        else:
            items = await _unless_gone(request, model.answer(raw, fields))
        return JSON(answers.answers(model.task, items, parameters, many))

    async def _stream(self, request: Request, model: Model, body: bytes) -> Response:
        if not model.generates:
            raise Problem(
                404,
                f"model {model.name} generates no text to stream; use /models/{model.name}",
                "name",
            )
        raw, fields, _, parameters = await self._inputs(request, model, body)
        found = model.stream(raw, fields)
        # The inputs are checked before the response begins, because its status depends on them.
        await anext(found)

        async def events() -> AsyncIterator[bytes]:
            async with aclosing(found):
                try:
                    async for event in found:
                        if event is not None:
                            position, item, complete = event
                            one = answers.answers(model.task, [item], parameters, False)
                            name = "answer" if complete else "partial"
                            yield _event(name, {"index": position, "answer": one})
                except Problem as problem:
                    yield _event("error", problem.body)
                    return
            yield _event("done", {"answers": len(raw)})

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _attention(self, request: Request, model: Model, body: bytes) -> Response:
        if not model.has_attention:
            raise Problem(
                404,
                f"model {model.name} was exported without attention weights",
                "name",
            )
        raw, fields, _, _ = await self._inputs(request, model, body)
        if len(raw) != 1:
            raise invalid(f"inputs: got {len(raw)} inputs, expected one", "inputs")
        return JSON(await _unless_gone(request, model.attention(raw[0], fields[0])))

    async def _inputs(
        self, request: Request, model: Model, body: bytes
    ) -> tuple[Sequence[Raw], Sequence[str], bool, dict[str, Any]]:
        """Reads inputs and parameters from a JSON body or a form.

        Returns:
          Raw inputs, their names for messages, whether "inputs" was a list, and the parameters.
        """
        if content_type(request) == "multipart/form-data":
            form = await read_form(request, body)
            text = form.get("parameters")
            given = None if text is None else _form_json(text)
            return [form["file"]], ["file"], False, answers.read_parameters(given, model.task)
        return await self._bodies.parse(body, functools.partial(self._values, model))

    def _values(
        self, model: Model, given: Any
    ) -> tuple[Sequence[Raw], Sequence[str], bool, dict[str, Any]]:
        known_keys(given, ("inputs", "parameters"), "body")
        if "inputs" not in given:
            raise invalid("inputs: is missing", "inputs")
        parameters = answers.read_parameters(given.get("parameters"), model.task)
        most = self._options.max_queue
        raw, fields, many = answers.read_inputs(given["inputs"], model.kind, most)
        return raw, fields, many, parameters


def _form_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("parameters: expected JSON", "parameters") from None


def _not_ready(error: str) -> Problem:
    return Problem(503, error, None, {"Retry-After": str(RETRY_S)})


def _event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), as_json(data))


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Returns the result of `work`, which is canceled if the client closes the connection.

    The connection is watched only after `_PATIENCE_S` seconds, because a task that watches it takes
    longer than a quick answer.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    watching: asyncio.Task | None = None
    is_gone = False

    async def gone() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            continue
        is_gone = True
        task.cancel()

    def watch() -> None:
        nonlocal watching
        watching = loop.create_task(gone())

    timer = loop.call_later(_PATIENCE_S, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
        raise Problem(400, "the client closed the connection") from None
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


def _page() -> tuple[bytes, str]:
    """Returns the web page, and a content security policy that allows only its script and style."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content is not None, tag
        digest = hashlib.sha256(content[1].encode("utf-8")).digest()
        hashes[tag] = f"'sha256-{base64.b64encode(digest).decode()}'"
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; img-src blob: data:; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    return page.encode("utf-8"), policy
