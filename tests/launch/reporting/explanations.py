"""Synthetic explanations of every kind of input."""

import numpy as np

from tasks.explanation import (
    AttentionMap,
    Attribution,
    Axis,
    Curve,
    Explanation,
    Picture,
    Series,
    Sound,
)

TEXT = "a gripping , beautifully shot film that never quite earns its ending"
SENTENCE = TEXT.split()
ARABIC = ["الفيلم", "كان", "جميلا", "جدا", "و", "ممتعا"]
METHODS = ("integrated_gradients", "gradient_x_input", "attention_rollout", "occlusion")


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (raised / raised.sum(axis=-1, keepdims=True)).astype(np.float32)


def heads(L, N, T, S=None, seed=0, causal=False):
    """Returns weights [L, N, T, S] of heads with different patterns."""
    S = T if S is None else S
    rng = np.random.default_rng(seed)
    t, s = np.arange(T)[:, None], np.arange(S)
    weights = np.empty((L, N, T, S), np.float32)
    for layer in range(L):
        for n in range(N):
            logits = rng.normal(size=(T, S)) * rng.uniform(0.5, 2.5)
            pattern = (layer + n) % 4
            if pattern == 0:
                logits -= np.abs(t * S / T - s) * 0.8
            elif pattern == 1:
                logits -= np.abs(t * S / T - 1 - s) * 3
            elif pattern == 2:
                logits[:, 0] += 4
            if causal:
                logits[s > t] = -np.inf
            weights[layer, n] = softmax(logits)
    return weights


def attributions(count, axis, seed=0, signed=True):
    rng = np.random.default_rng(seed)
    found = []
    for number, method in enumerate(METHODS):
        values = rng.normal(size=count) * np.exp(rng.normal(size=count))
        if number == 2 or not signed:
            values = np.abs(values)
        numbers = {"deletion": 0.31 + 0.07 * number, "insertion": 0.83 - 0.06 * number}
        found.append(Attribution(method, values, axis, numbers))
    return found


def curves():
    x = np.linspace(0, 1, 11)
    return [
        Curve(method, kind, x, scores)
        for number, method in enumerate(METHODS)
        for kind, scores in (
            ("deletion", 0.05 + 0.9 * np.exp(-x * (5 - number))),
            ("insertion", 0.95 - 0.9 * np.exp(-x * (5 - number))),
        )
    ]


def grid(rows, columns):
    y, x = (index.ravel() for index in np.indices((rows, columns)))
    corners = [x / columns, y / rows, (x + 1) / columns, (y + 1) / rows]
    return np.stack(corners, axis=-1)


def text(seed=0, id="00000000000000a1", L=4, N=6):
    tokens = ["[CLS]", *SENTENCE, "[SEP]"]
    return Explanation(
        id, " ".join(SENTENCE), "positive", "positive", "logit of positive",
        {"token": Axis("token", tokens)},
        [AttentionMap("encoder", heads(L, N, len(tokens), seed=seed), "token", "token")],
        attributions(len(tokens), "token", seed), curves(),
        confidence=0.913, score=1.0, kind="correct", replacement="[MASK]",
    )  # fmt: skip


def arabic():
    weights = heads(2, 2, len(ARABIC), seed=3)
    return Explanation(
        "arabic", " ".join(ARABIC), "إيجابي", "سلبي", "logit of إيجابي",
        {"token": Axis("token", ARABIC)},
        [AttentionMap("encoder", weights, "token", "token",
                      {"pattern": np.array([["diagonal", "previous"], ["first", "mixed"]])})],
        attributions(len(ARABIC), "token")[:1], confidence=0.55, score=0.0, kind="wrong",
    )  # fmt: skip


def scene(Y=96, X=128):
    y, x = np.indices((Y, X)) / np.array([Y, X])[:, None, None]
    image = np.stack([0.25 + 0.5 * y, 0.45 + 0.2 * x, 0.85 - 0.6 * y], axis=-1)
    disk = (y - 0.45) ** 2 + ((x - 0.35) * X / Y) ** 2 < 0.05
    image[disk] = (0.95, 0.8, 0.2)
    square = (np.abs(y - 0.7) < 0.14) & (np.abs(x - 0.75) < 0.1)
    image[square] = (0.7, 0.15, 0.2)
    return image.astype(np.float32), disk, square


def image():
    pixels, *_ = scene()
    labels = [f"row {n // 8}, column {n % 8}" for n in range(48)]
    return Explanation(
        "image", "street.png", "taxi", "bus", "logit of taxi",
        {"patch": Axis("patch", labels, grid(6, 8))},
        [AttentionMap("vision transformer", heads(3, 4, 48, seed=1), "patch", "patch")],
        attributions(48, "patch")[:2], curves(), Picture(pixels),
        confidence=0.61, score=0.0, kind="wrong", replacement="a blurred image",
    )  # fmt: skip


def gates():
    pixels, disk, square = scene()
    labels = [f"cell {n}" for n in range(12 * 16)]
    y, x = np.indices((12, 16)) / np.array([12, 16])[:, None, None]
    near = np.exp(-8 * ((y - 0.45) ** 2 + (x - 0.35) ** 2))
    weights = np.stack([near, 1 - near, near**2]).reshape(3, 1, 1, -1)
    return Explanation(
        "gates", "scan.png", "lesion", None, "mean logit of lesion",
        {"cell": Axis("cell", labels, grid(12, 16))},
        [AttentionMap("attention gates", weights.astype(np.float32), None, "cell")],
        medium=Picture(pixels, masks=[("lesion", disk), ("organ", square)]), score=0.72,
        kind="middle half",
    )  # fmt: skip


def detection():
    pixels, *_ = scene()
    boxes = [("sun 0.98", np.array([0.2, 0.22, 0.5, 0.68])),
             ("car 0.71", np.array([0.64, 0.55, 0.86, 0.85]))]  # fmt: skip
    objects = [name for name, _ in boxes]
    cells = Axis("cell", [f"cell {n}" for n in range(48)], grid(6, 8))
    return Explanation(
        "detection", "0001.jpg", "sun, car", None, "logit of sun",
        {"object": Axis("object", objects), "cell": cells},
        [AttentionMap("decoder cross-attention", heads(2, 4, 2, 48, seed=5), "object", "cell")],
        medium=Picture(pixels, boxes), confidence=0.9, score=0.8, kind="best quarter",
    )  # fmt: skip


def translation():
    source = ["das", "ist", "ein", "kleines", "Haus", ".", "</s>"]
    target = ["this", "is", "a", "small", "house", ".", "</s>"]
    weights = softmax(6 * np.eye(7) + np.random.default_rng(0).normal(size=(2, 2, 7, 7)))
    return Explanation(
        "translation", " ".join(source[:-1]), " ".join(target[:-1]), "this is a little house .",
        "log-probability of the translation",
        {"source": Axis("token", source), "target": Axis("token", target)},
        [AttentionMap("encoder", heads(2, 2, 7), "source", "source"),
         AttentionMap("decoder", heads(2, 2, 7, causal=True), "target", "target"),
         AttentionMap("cross", weights, "target", "source")],
        attributions(7, "source")[:2], confidence=0.4, score=61.5, kind="best quarter",
    )  # fmt: skip


def speech(frames=80):
    rate = 8000
    time = np.arange(2 * rate) / rate
    sound = 0.4 * np.sin(2 * np.pi * (300 + 400 * time) * time) * (np.sin(6 * time) > -0.3)
    y, x = np.indices((40, 2 * frames))
    picture = np.exp(-((y - 36 + x / 6) ** 2) / 14) * (np.sin(x * 6 / frames) > -0.3)
    picture = picture + 0.1 * np.random.default_rng(0).uniform(size=picture.shape)
    said = list("hello world")
    centers = np.linspace(4, frames - 5, len(said))
    weights = softmax(-((np.arange(frames) - centers[:, None]) ** 2) / 12)[None, None]
    labels = [f"{2 * n / frames:.2f} s" for n in range(frames)]
    return Explanation(
        "speech", "hello.wav", "hello world", "hello word", "log-probability of the transcript",
        {"character": Axis("character", said), "frame": Axis("frame", labels, grid(1, frames))},
        [AttentionMap("alignment", weights, "character", "frame")],
        [Attribution("saliency", weights[0, 0].mean(0), "frame")],
        medium=Sound(sound, rate, Picture(np.clip(picture, 0, 1))), score=0.09,
        confidence=0.77, kind="wrong",
    )  # fmt: skip


def line(columns=60):
    y, x = np.indices((32, 240))
    picture = 1 - 0.9 * (np.abs(y - 16 - 9 * np.sin(x / 7)) < 2)
    areas = np.array([[max(n - 2, 0) / columns, 0, min(n + 3, columns) / columns, 1]
                      for n in range(columns)])  # fmt: skip
    said = list("minimum")
    centers = np.linspace(3, columns - 4, len(said))
    weights = softmax(-((np.arange(columns) - centers[:, None]) ** 2) / 9)[None, None]
    return Explanation(
        "line", "line.png", "minimum", "minimum", "log-probability of the line",
        {"character": Axis("character", said),
         "column": Axis("column", [f"column {n}" for n in range(columns)], areas)},
        [AttentionMap("alignment", weights, "character", "column")],
        medium=Picture(picture.astype(np.float32)), score=0.0, kind="correct",
    )  # fmt: skip


def series(missing=True):
    T, F, P = 96, 24, 12
    steps = np.arange(T + F)
    values = np.sin(steps * 2 * np.pi / 24) + 0.01 * steps
    past = values[:T] + 0.1 * np.random.default_rng(0).normal(size=T)
    if missing:
        past[30:36] = np.nan
    areas = np.array([[n * T / P / (T + F - 1), 0, ((n + 1) * T / P - 1) / (T + F - 1), 1]
                      for n in range(P)])  # fmt: skip
    patches = Axis("patch", [f"steps {8 * n} to {8 * n + 7}" for n in range(P)], areas)
    return Explanation(
        "series", "electricity, client 3", "", None, "mean of the forecast",
        {"patch": patches, "channel": Axis("channel", [f"client {n}" for n in range(40)])},
        [AttentionMap("patches", heads(2, 4, P), "patch", "patch"),
         AttentionMap("channels", heads(1, 1, 1, 40), None, "channel")],
        attributions(P, "patch")[:2],
        medium=Series(past, values[T:] + 0.05, values[T:],
                      [f"2014-01-{1 + n // 24:02d} {n % 24:02d}:00" for n in steps], "client 3"),
        score=0.213, kind="middle half",
    )  # fmt: skip


def items():
    history = ["Alien (1979)", "Aliens (1986)", "Blade Runner (1982)", "Heat (1995)",
               "Toy Story (1995)", "The Thing (1982)"]  # fmt: skip
    recommended = ["Terminator, The (1984)", "Predator (1987)", "Casino (1995)"]
    return Explanation(
        "items", "user 17", recommended[0], "Predator (1987)", f"score of {recommended[0]}",
        {"history": Axis("item", history), "recommended": Axis("item", recommended)},
        [AttentionMap("history", heads(1, 2, 3, 6), "recommended", "history")],
        attributions(6, "history")[:1], score=0.5, kind="best quarter",
    )  # fmt: skip


def strange():
    """Returns an explanation with HTML, blank and odd tokens, and zero attributions."""
    tokens = ["<script>alert(1)</script>", " ", "\n", "", "</script>", "日本語", "🙂", "&amp;"]
    return Explanation(
        "<b>id</b>", "<img src=x onerror=alert(1)>", "<i>yes</i>", "\u2028", "logit of <i>",
        {"token": Axis("token", tokens)},
        [AttentionMap("<u>map</u>", np.zeros((1, 1, 8, 8), np.float32), "token", "token")],
        [Attribution("zero", np.zeros(8), "token"),
         Attribution("nan", np.full(8, np.nan), "token")],
        score=float("nan"),
    )  # fmt: skip


def single():
    return Explanation(
        "single", "word", "negative", "positive", "logit of negative",
        {"token": Axis("token", ["word"])},
        [AttentionMap("encoder", np.ones((1, 1, 1, 1), np.float32), "token", "token")],
        [Attribution("occlusion", np.ones(1), "token")], kind="wrong",
    )  # fmt: skip


def without_attention():
    return Explanation(
        "plain", "a short text", "negative", "positive", "logit of negative",
        {"token": Axis("token", ["a", "short", "text"])}, (),
        [Attribution("occlusion", np.array([0.1, -0.4, 0.3]), "token")], kind="wrong",
    )  # fmt: skip


def everything():
    return [text(), arabic(), image(), gates(), detection(), translation(), speech(), line(),
            series(), items(), strange(), single(), without_attention()]  # fmt: skip


def large(T=512, L=12, N=12):
    """Returns an explanation of a text with as many weights as those of BERT."""
    tokens = [f"{SENTENCE[n % len(SENTENCE)]}" for n in range(T)]
    rng = np.random.default_rng(0)
    t = np.arange(T)
    weights = np.empty((L, N, T, T), np.float32)
    for layer in range(L):
        for n in range(N):
            logits = rng.standard_normal((T, T), np.float32) * rng.uniform(0.5, 3)
            logits -= np.abs(t[:, None] - t) * rng.choice([0, 0.02, 0.3])
            logits[:, 0] += rng.choice([0, 4, 8])
            weights[layer, n] = softmax(logits)
    return Explanation(
        "large", " ".join(tokens), "positive", "positive", "logit of positive",
        {"token": Axis("token", tokens)}, [AttentionMap("encoder", weights, "token", "token")],
        attributions(T, "token")[:2], kind="correct",
    )  # fmt: skip


def rows(count=5000, seed=0):
    """Returns records of test examples with overconfident predictions."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        confidence = float(rng.uniform(0.5, 1))
        target = ("negative", "positive")[int(rng.integers(2))]
        right = rng.uniform() < confidence - 0.15 * (confidence > 0.7)
        other = "positive" if target == "negative" else "negative"
        words = rng.choice(SENTENCE, int(rng.integers(3, 40)))
        found.append({
            "id": f"{number:016x}", "input": " ".join(words), "target": target,
            "prediction": target if right else other, "confidence": round(confidence, 6),
            "score": float(right),
        })  # fmt: skip
    return found
