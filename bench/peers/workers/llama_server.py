"""llama.cpp's server, a program of the user's, called over HTTP as its own clients do."""

from __future__ import annotations

import atexit
import json
import shlex
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from time import perf_counter
from typing import Any

from .serving import serve

_HOST = "127.0.0.1"
_TRIES = 3
"""Another program may take the free port before the server does."""
_ANSWER_S = 3600.0
_GRACE_S = 5.0


class Server:
    """A server that runs."""

    def __init__(self, command: list[str]) -> None:
        """Start it and wait until it has loaded the model. Raises ``RuntimeError`` if it ends instead."""
        self.port = _free_port()
        self.process = subprocess.Popen(
            [*command, "--host", _HOST, "--port", str(self.port)], stdin=subprocess.DEVNULL
        )
        atexit.register(self.close)
        while not self._is_ready():
            if (code := self.process.poll()) is not None:
                raise RuntimeError(f"the server ended with exit code {code}; its log says why")
            time.sleep(0.1)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Its reply to GET, or POST if there is a ``body``. Raises ``RuntimeError`` for an error."""
        connection = HTTPConnection(_HOST, self.port, timeout=_ANSWER_S)
        try:
            method, data = ("POST", json.dumps(body)) if body is not None else ("GET", None)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path}: {reply['error']['message']}")
        return reply

    def _is_ready(self) -> bool:
        try:
            return bool(self.ask("/health")["status"] == "ok")
        except (OSError, HTTPException, RuntimeError):  # it does not listen yet, or still loads
            return False

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Not streamed: its stream leaves out tokens that end within a character. So the time of decoding
        is by the server's clock; all that it does not count is before the first token."""
        started = perf_counter()
        reply = self.ask(
            "/completion",
            {
                "prompt": request["ids"],
                "n_predict": request["max_tokens"],
                "cache_prompt": not request["fresh"],
                "return_tokens": True,
                "response_fields": ["tokens", "timings", "truncated"],
                "ignore_eos": not request["stop_ids"],
                "seed": request["seed"],
                **_sampling(request),
            },
        )
        took = perf_counter() - started
        ids, timings = reply["tokens"], reply["timings"]
        if reply["truncated"]:
            raise RuntimeError(f"the context of the server was full after {len(ids)} tokens")
        decode_s = timings["predicted_ms"] / 1000 if len(ids) > 1 else 0.0
        drafted, accepted = timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        return {
            "token_ids": ids,
            "first_tokens": 1,
            "ttft_s": took - decode_s,
            "decode_s": decode_s,
            "drafted": drafted,
            "accepted": accepted,
            # Each outputs one token besides the accepted ones; some of the last may have been cut off.
            "passes": max(len(ids) - 1 - accepted, 0),
        }

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        raise NotImplementedError(
            "the server gives no logits of a prompt; it runs the file as it is"
        )


def _sampling(request: dict[str, Any]) -> dict[str, Any]:
    if not request["temperature"]:
        return {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
    names = ("temperature", "top_k", "top_p")
    return {name: request[name] for name in names} | {"samplers": ["temperature", "top_k", "top_p"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _version(program: str) -> str:
    """From ``version: 1234 (abcdef)``, which it prints on stderr."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "version:" in line]
    return lines[0].partition("version:")[2].strip() if lines else "unknown"


def opened(request: dict[str, Any]) -> tuple[Server, dict[str, Any]]:
    """``settings``: ``program``, ``spec_type``, ``flags`` (more of the command line); and what is left are
    flags of the program, ``spec_draft_n_max`` for ``--spec-draft-n-max``."""
    settings = dict(request["settings"])
    program, spec_type = settings.pop("program"), settings.pop("spec_type")
    more = shlex.split(settings.pop("flags"))
    threads = str(request["threads"])
    command = [program, "--model", request["model"], "--ctx-size", str(request["context"])]
    command += ["--threads", threads, "--threads-batch", threads]
    command += ["--parallel", "1", "--cache-ram", "0", "--no-webui", "--device", "none"]
    if spec_type != "none":
        command += ["--spec-type", spec_type]
    if spec_type.startswith("draft"):
        command += ["--spec-draft-model", request["draft"]]
        command += ["--threads-draft", threads, "--threads-batch-draft", threads]
        command += ["--device-draft", "none"]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    print(shlex.join([*command, *more]), file=sys.stderr, flush=True)
    return Server([*command, *more]), {
        "version": f"llama.cpp {_version(program)}",
        "weights": "as in the file",
    }


if __name__ == "__main__":
    serve(opened)
