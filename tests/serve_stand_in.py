"""A small server that looks like trtllm-serve from outside: health, completions, step ranges."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nvtx

LOCK = threading.Lock()
STATE = {"active": 0, "step": 0, "requests": 0}


def step(context: int, generation: int) -> None:
    with LOCK:
        STATE["step"] += 1
        text = (
            f"[Executor] _forward_step {STATE['step']}: {context} ctx reqs, {generation} gen reqs"
        )
        with nvtx.annotate(text, domain="TensorRT-LLM"):
            time.sleep(0.002)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200 if self.path == "/health" else 404, {"requests": STATE["requests"]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if os.environ.get("STAND_IN_REFUSES"):
            return self.answer(422, {"error": "max_seq_len"})
        STATE["requests"] += 1
        step(1, 0)
        for _ in range(asked["max_tokens"]):
            step(0, 1)
        return self.answer(200, {"choices": [{"text": "", "tokens": len(asked["prompt"])}]})

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    if sys.argv[2:] == ["die"]:
        sys.exit("no such checkpoint")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
