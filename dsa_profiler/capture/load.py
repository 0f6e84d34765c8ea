"""A bounded load for an OpenAI-style server: so many requests at once, so many tokens each."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from dsa_profiler.capture.serve import Load
from dsa_profiler.errors import EnvironmentFault

FIRST_TOKEN, LAST_TOKEN = 1000, 30_000
"""Prompts are random token ids well inside any vocabulary: no two share a prefix to be reused."""


def send(url: str, model: str, load: Load, timeout_s: float, seed: int = 0) -> None:
    """Send `rounds` rounds of `batch` simultaneous completions and wait for all of them.

    Raises EnvironmentFault when the server refuses one: a smaller batch would be another case.
    """
    rng = random.Random(seed)
    for _ in range(load.rounds):
        bodies = [_body(model, load, rng) for _ in range(load.batch)]
        with ThreadPoolExecutor(load.batch) as pool:
            list(pool.map(lambda body: _post(f"{url}/v1/completions", body, timeout_s), bodies))


def _body(model: str, load: Load, rng: random.Random) -> bytes:
    return json.dumps(
        {
            "model": model,
            "prompt": [rng.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(load.prompt_tokens)],
            "max_tokens": load.output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": False,
        }
    ).encode()


def _post(url: str, body: bytes, timeout_s: float) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace").replace("\n", " ")
        raise _refused(f"{error.code}: {said}") from None
    except (OSError, urllib.error.URLError) as error:
        raise _refused(str(error)) from None


def _refused(why: str) -> EnvironmentFault:
    return EnvironmentFault(
        "serve-load",
        f"the server refused a request: {why}",
        "check its max_batch_size, max_seq_len and free memory against the case",
    )
