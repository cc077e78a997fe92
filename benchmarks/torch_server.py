"""The attention-pooling classifier of an export in PyTorch, behind Starlette and uvicorn.

python -m benchmarks.torch_server --export=FOLDER

It has the weights and the pre- and postprocessing of the export. A request takes the usual path:
an endpoint reads JSON, runs the model on one text and returns JSON. PyTorch has one thread, which
is fastest for a single text. uvicorn runs with its default settings, without logs.
`benchmarks.serving` starts the command.
"""

from __future__ import annotations

import math
from typing import Any

from absl import app, flags

from launch.exports.reader import Export, Item, read_tensors

flags.DEFINE_string("export", None, "Folder of launch.export.", required=True)


def classifier(export: Export) -> Any:
    """Returns a function of tokens, int [T], that computes the probabilities of the classes.

        p = softmax(sqrt(T) Σ_t α_t e_t W + b),  α = softmax_t(tanh(e_t V + c) · u)

    p, [C], are the probabilities, e_t is the embedding of token t and α_t its attention weight. V,
    c, u, W and b are parameters.
    """
    import torch

    names = {
        name.removeprefix("params/"): torch.from_numpy(value.copy())
        for name, value in read_tensors(export.folder / "weights.safetensors").items()
    }
    table, context = names["tokens/embedding"], names["pool/context"]
    hidden, shift = names["pool/hidden/kernel"], names["pool/hidden/bias"]
    kernel, bias = names["classify/kernel"], names["classify/bias"]

    def run(tokens: Any) -> Any:
        states = table[torch.from_numpy(tokens).long()]
        weights = torch.softmax(torch.tanh(states @ hidden + shift) @ context, dim=0)
        pooled = weights @ states * math.sqrt(len(tokens))
        return torch.softmax(pooled @ kernel + bias, dim=-1)

    return run


def main(_: list[str]) -> None:
    """Serves on a free port until SIGTERM; first prints the address, then "ready"."""
    import socket

    import torch
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    torch.set_num_threads(1)
    export = Export(flags.FLAGS.export)
    model = classifier(export)

    def answer(text: str) -> list[dict[str, Any]]:
        item: Item = export.encode(text)
        with torch.inference_mode():
            found = model(item.rows[0]["tokens"]).numpy()
        item.outputs = [{"probabilities": found}]
        ranked = export.decode(item)["probabilities"]
        return [{"label": label, "score": score} for label, score in ranked.items()]

    async def predict(request: Request) -> JSONResponse:
        given = await request.json()
        return JSONResponse([answer(given["inputs"])])

    answer("a first text, which loads the tokenizer")
    opened = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"serving on http://127.0.0.1:{opened.getsockname()[1]}", flush=True)
    print("ready", flush=True)
    app_ = Starlette(routes=[Route("/models/model", predict, methods=["POST"])])
    config = uvicorn.Config(app_, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[opened])


if __name__ == "__main__":
    app.run(main)
