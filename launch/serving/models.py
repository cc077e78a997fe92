"""Served models, which convert raw inputs to answers, or input arrays to output arrays.

Inputs are encoded and outputs decoded in a thread pool of each model. Programs run on batches of
rows in another thread, see `launch.serving.batching`. Encoding, decoding or a program runs on the
thread of the event loop instead if it takes less time than a change of threads.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np

from launch.engine.memory import return_free_memory
from launch.exports.pipelines import pipeline_of
from launch.exports.reader import (
    Export,
    InputError,
    Item,
    Raw,
    Row,
    Tokenizer,
    fetched,
    read_tensors,
)
from launch.serving.arrivals import Arrivals
from launch.serving.batching import Batcher, Expired, Key, Outputs
from launch.serving.limits import expect_size
from launch.serving.metrics import Metrics
from launch.serving.options import Options
from launch.serving.problems import RETRY_S, Problem, invalid
from launch.serving.queue import Places, Queue

# Tasks whose answer is generated text, which may be streamed.
GENERATING = frozenset(
    ["translation", "language_modeling", "speech_recognition", "handwriting_recognition"]
)
# Kinds of programs that run on batches; programs that decode token by token run on one input.
_BATCHED = ("predict", "attention")
# Key under which a row keeps its bucket, the index of its program; no input has this name.
_BUCKET = "(bucket)"
# Operations on texts that take well below a millisecond for `_SHORT` characters. They run on the
# thread of the event loop, because a change to another thread and back would take longer.
_QUICK = frozenset(
    (
        *("tokenize", "prompt", "blanks", "append", "length", "digits"),
        *("rank_labels", "sentences", "spell_digits", "completion", "fill_blanks"),
    )
)
_SHORT = 1000
# Longest time, in seconds, of a batch that runs on the thread of the event loop.
_SHORT_S = 0.003
# Number of timed runs of each batch size, and two limits on the ratio of the time per row at this
# size to the shortest time per row at any size. Up to the first limit, a smaller batch is
# preferred. Above the second limit, larger batches are not tried.
_TIMINGS, _NEAR, _HOPELESS = 3, 1.1, 1.5
# Maximum number of attention weights in a response.
ATTENTION_NUMBERS = 1_000_000
# Characters or bytes that are encoded for one request before other requests get their turn.
_TURN = 100_000

# Held while an input that needs much memory is decoded, one at a time.
_decoding_large = threading.Lock()
Result = TypeVar("Result")


class Model:
    """A served model: its export, its queue of inputs and its batcher.

    Attributes:
      name: name in URLs.
      export: export that contains the model.
      task: name of the model's task.
      kind: kind of a raw input: "text", "image", "sound" or "table".
    """

    def __init__(
        self,
        name: str,
        export: Export,
        options: Options,
        metrics: Metrics,
        failed: Callable[[BaseException], None] = lambda error: None,
    ):
        """Creates a model without compiling its programs.

        Args:
          name: name of the model in URLs.
          export: export that contains the model.
          options: options of the server.
          metrics: metrics of the server.
          failed: called from another thread with the error if the programs cannot be compiled.
        """
        self.name, self.export = name, export
        self.task, self.kind = export.signature["task"], export.kind
        self._options, self._metrics = options, metrics
        self._queue = Queue(name, options.max_queue, self._submit)
        metrics.queue.labels(name).set_function(lambda: self._queue.taken)
        metrics.ready.labels(name).set(0)
        # Texts have one thread, because stemmers are not thread-safe. Decoders of images and sounds
        # release the global interpreter lock, so that several threads are faster.
        threads = 1 if self.kind == "text" else min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"inputs of {name}")
        signature = export.signature
        steps = {step["op"] for step in (*signature["encode"], *signature["decode"])}
        self._is_quick = self.kind == "text" and steps <= _QUICK
        # Held by the thread that uses the tokenizer.
        self._tokenizing = threading.Lock()
        self._arrivals = Arrivals()
        # The programs whose batches run on the thread of the event loop, whether these are all
        # programs of the kind "predict", and the rows that wait for them.
        self._short: set[Key] = set()
        self._all_short = False
        self._soon: list[tuple[Key, Row, asyncio.Future[Outputs]]] = []
        self._seconds = metrics.seconds.labels(name)
        self._batcher = Batcher(
            name,
            self._run,
            max_batch=options.max_batch,
            max_wait_s=options.max_wait_ms / 1000,
            prepare=self._compile,
            failed=failed,
            # If all accepted inputs are queued, as with a single client, a batch does not wait.
            expected=lambda: self._queue.taken,
        )
        metrics.waiting.labels(name).set_function(lambda: len(self._batcher))

    @property
    def ready(self) -> bool:
        """True if all programs are compiled."""
        return self._batcher.ready

    @property
    def pipeline(self) -> str:
        """Name of the task on the Hugging Face hub; else the task's name in this project."""
        return pipeline_of(self.export.signature) or self.task.replace("_", "-")

    @property
    def has_attention(self) -> bool:
        """True if the export contains programs that return attention weights."""
        return "attention" in self.export.signature["programs"]

    @property
    def generates(self) -> bool:
        """True if answers are generated text."""
        return self.streams_tokens or self.task in GENERATING

    @property
    def streams_tokens(self) -> bool:
        """True if the export has programs that decode token by token."""
        return self.export.signature["decoding"] is not None

    def start(self) -> None:
        """Starts the thread of the batcher, which compiles the programs first."""
        self._batcher.start()

    def wait_ready(self) -> None:
        """Waits until the programs are compiled or their compilation has failed."""
        self._batcher.prepared.wait()

    def stop(self, timeout_s: float) -> bool:
        """Runs the queued rows; returns whether the batcher ended within `timeout_s` seconds."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        return self._batcher.stop(timeout_s)

    # ------------------------------------------------------------ programs

    def _compile(self) -> None:
        """Compiles each program for each batch size by running it once."""
        programs = self.export.signature["programs"]
        golden = read_tensors(self.export.folder / "golden.safetensors")
        for kind in _BATCHED:
            for bucket in range(len(programs.get(kind, ()))):
                row = self._golden_row(golden, bucket)
                for size in self._options.batch_sizes:
                    if self._batcher.stopping:
                        return
                    self._run((kind, bucket), [row] * size, count=False)
                self._choose((kind, bucket), row)
        for bucket in range(len(programs.get("step", ()))):
            if self._batcher.stopping:
                return
            row = self._golden_row(golden, bucket)
            state = self.export.program("prefill", bucket)(self.export.batch([row], [0], bucket, 1))
            self.export.program("step", bucket)(state)
        predict = {("predict", bucket) for bucket in range(len(programs["predict"]))}
        self._all_short = predict <= self._short
        self._metrics.ready.labels(self.name).set(1)

    def _choose(self, key: Key, row: Row) -> None:
        """Measures batches with a key, and chooses their thread and their maximum size.

        Short batches run on the thread of the event loop. Longer ones are limited to the smallest
        size at which a row takes about the least time: on a CPU, rows of large batches take longer
        if their arrays exceed the caches, and all rows of a batch wait for its last one.
        """
        import jax

        sizes, per_row = self._options.batch_sizes, {}
        if self._seconds_of(key, row, 1) < _SHORT_S:
            # The program takes less time than the rest of the work on a batch, so that the largest
            # batch is best.
            if jax.default_backend() == "cpu" and self._seconds_of(key, row, sizes[-1]) < _SHORT_S:
                self._short.add(key)
            return
        for size in sizes:
            per_row[size] = self._seconds_of(key, row, size) / size
            if per_row[size] > _HOPELESS * min(per_row.values()):
                break
        least = min(per_row.values())
        self._batcher.limit(key, next(n for n, s in per_row.items() if s <= _NEAR * least))

    def _seconds_of(self, key: Key, row: Row, size: int) -> float:
        """Returns the shortest time of several runs of a batch, in seconds."""
        seconds = []
        for _ in range(_TIMINGS):
            start = time.perf_counter()
            self._run(key, [row] * size, count=False)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def _golden_row(self, golden: Mapping[str, np.ndarray], bucket: int) -> Row:
        sizes = self.export.signature["programs"]["predict"][bucket]["sizes"]
        row = {}
        for name, spec in self.export.signature["inputs"].items():
            found = golden.get(f"{bucket}/inputs/{name}")
            shape = [sizes.get(n, n) if isinstance(n, str) else n for n in spec["shape"][1:]]
            row[name] = np.ones(shape, spec["dtype"]) if found is None else np.array(found[0])
        return row

    def _run(self, key: Key, rows: Sequence[Row], count: bool = True) -> list[Outputs]:
        kind, bucket = key
        start = time.perf_counter()
        size = 1 << (len(rows) - 1).bit_length()
        batch = self.export.batch(rows, range(len(rows)), bucket, size)
        outputs = fetched(self.export.program(kind, bucket)(batch))
        if count:
            self._metrics.batch_rows.labels(self.name).observe(len(rows))
            seconds = time.perf_counter() - start
            self._metrics.program_seconds.labels(self.name).observe(seconds)
        return [{name: value[n] for name, value in outputs.items()} for n in range(len(rows))]

    # ------------------------------------------------------------ requests

    def check_free(self) -> None:
        """Checks that the model is ready and the queue is not full, before a body is read.

        Raises:
          Problem: the model is not ready, or the queue is full.
        """
        if not self.ready:
            headers = {"Retry-After": str(RETRY_S)}
            raise Problem(503, f"model {self.name} is being compiled", None, headers)
        self._queue.expect_free()

    async def answer(self, raw: Sequence[Raw], fields: Sequence[str]) -> list[Item]:
        """Encodes inputs, runs the model, and returns the inputs with their answers.

        Args:
          raw: texts, or contents of files.
          fields: name of each input in messages.

        Raises:
          Problem: an input is invalid, the queue is full, or the deadline has passed.
        """
        with self._queue.accepted(len(raw)) as places:
            return await self._within(self._answer(raw, fields, places))

    def is_prompt(self, raw: Sequence[Raw]) -> bool:
        """Returns whether inputs can be answered without waiting for another thread."""
        return self._all_short and self._is_quick and sum(map(len, raw)) <= _SHORT

    async def answer_promptly(self, raw: Sequence[Raw], fields: Sequence[str]) -> list[Item]:
        """Does the same as `answer`, but without a timeout; the inputs must satisfy `is_prompt`."""
        with self._queue.accepted(len(raw)) as places:
            return await self._answer(raw, fields, places)

    async def _answer(
        self, raw: Sequence[Raw], fields: Sequence[str], places: Places
    ) -> list[Item]:
        items = await self._encoded(raw, fields, places)
        rows = [row for item in items for row in item.rows]
        places.add(len(rows) - len(raw), fields[0])
        found = iter(await self._batched("predict", rows))
        for item in items:
            item.outputs = [next(found) for _ in item.rows]
        await self._call(places, raw, lambda: [self.export.decode(item) for item in items])
        return items

    async def _call(
        self, places: Places, raw: Sequence[Raw], function: Callable[[], Result]
    ) -> Result:
        """Calls a function that processes inputs, on another thread unless the call is quick."""
        if self._is_quick and sum(map(len, raw)) <= _SHORT and self._tokenizing.acquire(False):
            try:
                return function()
            finally:
                self._tokenizing.release()
        return await self._within(places.call(function))

    async def stream(
        self, raw: Sequence[Raw], fields: Sequence[str]
    ) -> AsyncIterator[tuple[int, Item, bool] | None]:
        """Yields None once the inputs are valid and accepted, and then the answers.

        An answer is a tuple (index of the input, item with the answer, whether it is complete). If
        the export decodes token by token, decoding is greedy, and incomplete answers precede the
        complete one.

        Raises:
          Problem: see `answer`.
        """
        with self._queue.accepted(len(raw)) as places:
            items = await self._within(self._encoded(raw, fields, places))
            places.add(sum(len(item.rows) for item in items) - len(raw), fields[0])
            if self.streams_tokens:
                yield None
                for position, item in enumerate(items):
                    async for partial, complete in self._tokens_of(item, places):
                        yield position, partial, complete
                return
            running = [asyncio.ensure_future(self._batched("predict", i.rows)) for i in items]
            try:
                yield None
                for position, item in enumerate(items):
                    item.outputs = await self._within(running[position])
                    await places.call(functools.partial(self.export.decode, item))
                    yield position, item, True
            finally:
                for future in running:
                    future.cancel()

    async def _tokens_of(self, item: Item, places: Places) -> AsyncIterator[tuple[Item, bool]]:
        """Yields the item with its answer after each token, and whether the answer is complete."""
        answers, deadline = self.export.stream_item(item), self._deadline()
        now = await self._within(places.call(lambda: next(answers, None)), deadline)
        while now is not None:
            after = await self._within(places.call(lambda: next(answers, None)), deadline)
            shown = Item(item.raw, item.rows)
            shown.answer = now
            yield shown, after is None
            now = after

    async def outputs(self, rows: Sequence[Row]) -> list[Outputs]:
        """Runs the program "predict" on rows of input arrays; returns the outputs of each row.

        Args:
          rows: rows whose variable dimensions all have the same sizes. A program must be exported
            for these sizes.

        Raises:
          Problem: the queue is full, or the deadline has passed.
        """
        with self._queue.accepted(len(rows)):
            return await self._within(self._batched("predict", rows))

    async def attention(self, raw: Raw, field: str) -> dict[str, Any]:
        """Returns the attention weights of an input, and the tokens along their axes if known.

        Args:
          raw: text, or content of a file.
          field: name of the input in messages.

        Raises:
          Problem: see `answer`; or there are more than `ATTENTION_NUMBERS` weights.
        """
        with self._queue.accepted(1) as places:
            return await self._within(self._attention(raw, field, places))

    async def _attention(self, raw: Raw, field: str, places: Places) -> dict[str, Any]:
        items = await self._encoded([raw], [field], places)
        row = items[0].rows[0]
        (found,) = await self._batched("attention", [row])
        return await places.call(functools.partial(self._attention_of, row, found, field))

    async def _batched(self, kind: str, rows: Sequence[Row]) -> list[Outputs]:
        keyed = []
        for number, row in enumerate(rows):
            # Both kinds of programs have the same buckets.
            bucket = row.get(_BUCKET)
            key = kind, self.export.bucket(row, kind) if bucket is None else bucket
            defaults = {"id": np.int64(number), "weight": np.float32(1)}
            missing = {
                name: value
                for name, value in defaults.items()
                if name in self.export.signature["inputs"] and name not in row
            }
            keyed.append((key, {**row, **missing}))
        if all(key in self._short for key, _ in keyed):
            return await self._run_soon(keyed)
        return await self._arrivals.wait(self._batcher.submit(keyed, self._deadline()))

    async def _run_soon(self, keyed: Sequence[tuple[Key, Row]]) -> list[Outputs]:
        """Runs rows of short programs on this thread, together with those of other requests."""
        loop = asyncio.get_running_loop()
        if not self._soon:
            # Called after the event loop has handled all requests that are ready now.
            loop.call_soon(self._run_short)
        waiters = [loop.create_future() for _ in keyed]
        self._soon += [
            (key, row, waiter) for (key, row), waiter in zip(keyed, waiters, strict=True)
        ]
        return [await waiters[0]] if len(waiters) == 1 else await asyncio.gather(*waiters)

    def _run_short(self) -> None:
        by_key: dict[Key, list[tuple[Row, asyncio.Future]]] = {}
        for key, row, waiter in self._soon:
            if not waiter.done():
                by_key.setdefault(key, []).append((row, waiter))
        self._soon = []
        for key, jobs in by_key.items():
            for first in range(0, len(jobs), self._options.max_batch):
                part = jobs[first : first + self._options.max_batch]
                try:
                    outputs = self._run(key, [row for row, _ in part])
                except Exception as error:
                    logging.getLogger(__name__).exception("a batch of program %s failed", key)
                    for _, waiter in part:
                        waiter.set_exception(error)
                    continue
                for (_, waiter), found in zip(part, outputs, strict=True):
                    waiter.set_result(found)

    def _submit(self, function: Callable[[], Result]) -> Future[Result]:
        return self._threads.submit(self._locked, function)

    def _locked(self, function: Callable[[], Result]) -> Result:
        """Calls a function; holds the lock of the tokenizer if the model's inputs are texts."""
        if self.kind != "text":
            return function()
        with self._tokenizing:
            return function()

    def observe_seconds(self, seconds: float) -> None:
        """Adds the duration of an answered request to the metrics."""
        self._seconds.observe(seconds)

    def _deadline(self) -> float:
        return time.monotonic() + self._options.timeout_s

    async def _within(self, work: Any, deadline: float | None = None) -> Any:
        """Awaits `work` until a deadline on `time.monotonic`, by default that of a new request.

        Raises:
          Problem: the deadline has passed.
        """
        deadline = self._deadline() if deadline is None else deadline
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await work
        except (TimeoutError, Expired):
            raise Problem(
                504, f"no answer within {self._options.timeout_s:g} seconds; try again later"
            ) from None

    def _attention_of(self, row: Row, weights: Outputs, field: str) -> dict[str, Any]:
        sizes = self.export.sizes(row)
        padded = self.export.signature["programs"]["attention"][self.export.bucket(row)]["sizes"]
        found = {}
        for name, array in weights.items():
            found[name] = np.asarray(_cut(array, sizes, padded), np.float64)
        numbers = sum(array.size for array in found.values())
        if numbers > ATTENTION_NUMBERS:
            raise invalid(
                f"{field}: has {numbers} attention weights, expected at most "
                f"{ATTENTION_NUMBERS}; give a smaller input",
                field,
            )
        return {
            **self._tokens(row),
            "attention": {
                name: {"shape": list(array.shape), "data": np.round(array, 5).ravel().tolist()}
                for name, array in found.items()
            },
        }

    def _tokens(self, row: Row) -> dict[str, Any]:
        """Returns the tokens and words of a text, and for each token the range of its words."""
        steps = self.export.signature["encode"]
        file = next((step["file"] for step in steps if step["op"] == "tokenize"), None)
        if file is None or np.ndim(row.get("tokens")) != 1:
            return {"tokens": None, "words": None, "spans": None}
        if not hasattr(self, "_tokenizer"):
            self._tokenizer = Tokenizer(self.export.folder / file)
        words, spans = self._tokenizer.spans(row["raw"], row["tokens"]) or (None, None)
        tokens = [self._tokenizer.spell(token) or "·" for token in row["tokens"]]
        return {"tokens": tokens, "words": words, "spans": spans}

    # ------------------------------------------------------------ inputs

    async def _encoded(
        self, raw: Sequence[Raw], fields: Sequence[str], places: Places
    ) -> list[Item]:
        """Encodes inputs in parts, so that inputs of other requests can be encoded in between."""
        items: list[Item] = []
        start, size = 0, 0
        for end, one in enumerate(raw, 1):
            size += len(one)
            if size >= _TURN or end == len(raw):
                turn = raw[start:end], fields[start:end]
                items += await self._call(places, turn[0], functools.partial(self._encode, *turn))
                self._queue.expect_rows(sum(len(item.rows) for item in items), fields[0])
                start, size = end, 0
        return items

    def _encode(self, raw: Sequence[Raw], fields: Sequence[str]) -> list[Item]:
        items = []
        for one, field in zip(raw, fields, strict=True):
            large = expect_size(one, self.kind, self._options, field)
            try:
                with _decoding_large if large else nullcontext():
                    try:
                        item = self.export.encode(one, self._options.max_sound_s)
                    finally:
                        if large:
                            return_free_memory()
                for row in item.rows:
                    row[_BUCKET] = self.export.bucket(row)
            except InputError as error:
                raise invalid(f"{field}: {self.public(str(error))}", field) from None
            items.append(item)
        return items

    def public(self, message: str) -> str:
        """Returns a message with the model's name instead of its folder on the server."""
        return message.replace(str(self.export.folder), self.name)


def _cut(array: np.ndarray, sizes: Mapping[str, int], padded: Mapping[str, int]) -> np.ndarray:
    """Removes the padding at the end of the last two dimensions of an array.

    Args:
      array: output of a row, padded to the sizes of its bucket.
      sizes: sizes of the row, by name.
      padded: sizes of the bucket, by name.
    """
    for axis in (-1, -2):
        for name, length in padded.items():
            if array.ndim >= -axis and array.shape[axis] == length > sizes.get(name, length):
                array = array.take(range(sizes[name]), axis)
                break
    return array
