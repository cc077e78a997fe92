"""A tiny exported model, and its server in the process of the tests."""

from __future__ import annotations

import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from launch.exports import writer
from launch.exports.reader import Export
from launch.serving.app import Application
from launch.serving.options import Options
from tests.tasks import contract

NAME = "reviews"


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> pathlib.Path:
    """Writes the export of a text classifier with its attention, and returns its folder."""
    folder = tmp_path_factory.mktemp("served")
    subject = contract.make_subject("text_classification", folder)
    writer.write_export(
        subject.task, subject.config, subject.variables, folder / NAME, with_attention=True
    )
    return folder / NAME


@pytest.fixture(scope="session")
def export(exported) -> Export:
    """Returns the export, read."""
    return Export(exported)


@contextlib.contextmanager
def served(exports: dict[str, Export], wait: bool = True, **options: Any) -> Iterator[TestClient]:
    """Serves exports in this process; the client has the attribute `application`."""
    errors: list[BaseException] = []

    def failed(_: str, error: BaseException) -> None:
        errors.append(error)

    application = Application(exports, Options(**{"max_batch": 4, **options}), failed)
    with TestClient(application.asgi()) as client:
        client.application = application
        if wait:
            for model in application.models.values():
                model.wait_ready()
        assert not errors
        yield client


@pytest.fixture(scope="session")
def client(export) -> Iterator[TestClient]:
    """Returns a client of the tiny model."""
    with served({NAME: export}) as found:
        yield found


@pytest.fixture
def blocked(monkeypatch) -> Callable[[Application], threading.Event]:
    """Returns a function that holds the programs of a model until its event is set."""
    events = []

    def block(application: Application) -> threading.Event:
        (model,) = application.models.values()
        event, run = threading.Event(), model._batcher._run
        # On the thread of the event loop, nothing could be held.
        model._short.clear()
        model._all_short = False
        events.append(event)

        def held(*arguments: Any) -> Any:
            event.wait(30)
            return run(*arguments)

        monkeypatch.setattr(model._batcher, "_run", held)
        return event

    yield block
    for event in events:
        event.set()


KINDS = {
    NAME: "text_classification",
    "photos": "image_classification",
    "sounds": "speech_recognition",
    "tables": "forecasting",
}


@pytest.fixture(scope="session")
def kinds(exported, tmp_path_factory) -> dict[str, tuple[Export, Any]]:
    """Returns a model of each kind of input by name: its export, and the content of an input."""
    folder = tmp_path_factory.mktemp("kinds")
    found: dict[str, tuple[Export, Any]] = {NAME: (Export(exported), "fine lovely film")}
    for name, task in KINDS.items():
        if name == NAME:
            continue
        subject = contract.make_subject(task, folder / f"{name}-data")
        writer.write_export(subject.task, subject.config, subject.variables, folder / name)
        found[name] = Export(folder / name), pathlib.Path(subject.raw[0]).read_bytes()
    return found
