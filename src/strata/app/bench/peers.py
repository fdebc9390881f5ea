"""Other engines, each in a process of its own, in an environment of their own.

::

    strata bench ──JSON lines──▶ <peers' environment>/bin/python scripts/run_llama.py      (scripts/serve.py)

A process answers one request at a time, so that one benchmark can run us and them in turn. Models with random
weights are made once per shape and kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.core.errors import UserError
from strata.core.knobs import cache_folder
from strata.core.weight_format import parse_format_choice

SCRIPTS = Path(__file__).parent / "scripts"
MAKE_LIMIT_S = 1800.0
LOG_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run a model without us.

    Attributes:
        name: What ``--only`` takes and tables show.
        precision: What its script makes of the weights.
        formats: Our formats that it is a peer of.
        script: File in ``scripts``.
        suffix: Of the file or folder that its script makes.
        title: How it computes.
        is_extra: Runs only when it is asked for by name.
        refuses: Why it cannot run an architecture.
    """

    name: str
    precision: str
    formats: tuple[str, ...]
    script: str
    suffix: str
    title: str
    is_extra: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)


_HALVES = ("f16", "bf16")
_NO_GPT2_READER = {"GPT2LMHeadModel": "the GGUF reader of OpenVINO GenAI has no GPT-2"}
_NO_GPT2_BUILDER = {"GPT2LMHeadModel": "the model builder of ONNX Runtime GenAI has no GPT-2"}


def _llama(precision: str, *formats: str) -> Peer:
    return Peer(
        f"llama.cpp-{precision}", precision, formats, "run_llama.py", ".gguf", f"llama.cpp {precision}"
    )


def _openvino(precision: str, *formats: str) -> Peer:
    title = f"OpenVINO {precision}"
    return Peer(
        *(f"openvino-{precision}", precision, formats, "run_openvino.py", ".gguf", title),
        refuses=_NO_GPT2_READER,
    )


def _torch(precision: str, is_compiled: bool, *formats: str) -> Peer:
    how = "-compiled" if is_compiled else ""
    title = f"PyTorch {precision} {'compiled' if is_compiled else 'eager'}"
    return Peer(
        f"torch{how}-{precision}", f"{precision}{how}", formats, "run_torch.py", ".json", title, is_compiled
    )


PEERS: tuple[Peer, ...] = (
    _llama("f32", "f32"),
    _llama("bf16", *_HALVES),
    _llama("f16", *_HALVES),
    _llama("q8_0", "int8"),
    _llama("q4_0", "int4"),
    _openvino("f16", *_HALVES),
    _openvino("q8_0", "int8"),
    _openvino("q4_0", "int4"),
    Peer(
        *("onnxruntime-int4", "int4", ("int4",), "run_onnxruntime.py", ".onnx", "ONNX Runtime int4"),
        refuses=_NO_GPT2_BUILDER,
    ),
    _torch("f32", False, "f32"),
    _torch("bf16", False, *_HALVES),
    _torch("f32", True, "f32"),
    _torch("bf16", True, *_HALVES),
)


def find_peers(format_: str, only: Sequence[str] = ()) -> tuple[Peer, ...]:
    """Peers of a format of ours.

    Args:
        format_: ``f32``, ``int4:group=64``, ``mixed``, ...: the default of the weights counts.
        only: Beginnings of names; none = all but those that run only when asked for.

    Raises:
        UserError: no peer of this format has such a name.
    """
    ours = str(parse_format_choice(format_).default).partition(":")[0]
    known = [p for p in PEERS if ours in p.formats]
    for name in only:
        if not any(p.name.startswith(name) for p in known):
            names = ", ".join(p.name for p in known) or "none"
            raise UserError(f"--only: no peer {name!r} for format {format_}; peers: {names}")
    if only:
        return tuple(p for p in known if p.name.startswith(tuple(only)))
    return tuple(p for p in known if not p.is_extra)


class PeerError(Exception):
    """A peer crashed, hung, or cannot run the model. The message says which and why."""


class PeerProcess:
    """One running script: answers requests until it is closed.

    Args:
        python: Interpreter of the peers' environment.
        script: File in ``scripts``.
        log: File for what it and its libraries print.
        limit_s: Longest time for one answer.
    """

    def __init__(self, python: Path, script: str, log: Path, limit_s: float) -> None:
        self._log, self._limit_s, self._rest = log, limit_s, b""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(python), str(SCRIPTS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C ends it through us
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, action: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            PeerError: the process died, or took longer than the limit (then it is ended).
        """
        assert self._process.stdin is not None
        line = json.dumps({"do": action, **values}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(action) from None
        return json.loads(self._line(action))

    def _line(self, action: str) -> bytes:
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + self._limit_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                self.close()
                raise PeerError(f"{action} took longer than {self._limit_s:.0f} s")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise self._died(action)
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _died(self, action: str) -> PeerError:
        status = self._process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        with self._log.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES, 0))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "nothing said")
        self.close()
        return PeerError(f"{action} ended with {how}: {last} (log: {self._log})")

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a request that nobody read
                continue

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where peers are and how they run.

    Attributes:
        environment: Virtual environment with their libraries.
        limit_s: Longest time for one answer.
    """

    environment: Path
    limit_s: float = 300.0

    @property
    def python(self) -> Path:
        """Its interpreter.

        Raises:
            UserError: there is none.
        """
        path = self.environment / "bin" / "python"
        if not path.is_file():
            raise UserError(
                f"{self.environment}: no environment of peers; make it with strata bench --install-peers, "
                "or name another with --peers-env"
            )
        return path


def default_environment() -> Path:
    """Where ``--install-peers`` puts the peers."""
    return cache_folder() / "peers" / "venv"


class PeerRunner:
    """A peer with a model loaded: the same questions as to our own runner.

    Raises:
        PeerError: it cannot make or load the model.
    """

    def __init__(
        self, peer: Peer, place: Place, values: Mapping[str, Any], threads: int, tokens: int, batch: int
    ) -> None:
        why = peer.refuses.get(values["architectures"][0])
        if why is not None:
            raise PeerError(why)
        path = made_model(peer, place, values)
        self._process = PeerProcess(
            place.python, peer.script, path.with_name(f"{peer.name}.log"), place.limit_s
        )
        answer = self._ask("load", path=str(path), threads=threads, tokens=tokens, batch=batch)
        self.version: str = answer["version"]
        self.load_s: float = answer["seconds"]
        self.peak_rss_bytes = 0

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt of random tokens."""
        return self._ask("prefill", tokens=tokens)["seconds"]

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """Seconds for greedy steps of ``batch`` sequences."""
        return self._ask("decode", context=context, tokens=tokens, batch=batch)["seconds"]

    def _ask(self, action: str, **values: Any) -> dict[str, Any]:
        answer = self._process.ask(action, **values)
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return answer

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        self._process.close()


def made_model(peer: Peer, place: Place, values: Mapping[str, Any]) -> Path:
    """The model of this shape in the peer's form, made now if it is not in the cache folder.

    Raises:
        PeerError: its script cannot make it.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    architecture = values["architectures"][0].removesuffix("ForCausalLM").lower()
    folder = cache_folder() / "peers" / "models" / f"{architecture}-{digest}"
    path = folder / f"{peer.precision}{peer.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        log = folder / f"{peer.name}-make.log"
        with PeerProcess(place.python, peer.script, log, MAKE_LIMIT_S) as process:
            process.ask("make", config=dict(values), precision=peer.precision, path=str(path))
    return path


def start_peers(
    peers: Iterable[Peer], start: Callable[[Peer], PeerRunner]
) -> tuple[dict[str, PeerRunner], dict[str, str]]:
    """Start every peer that can be started.

    Returns:
        Those that run, and for the others why not.
    """
    running: dict[str, PeerRunner] = {}
    failed: dict[str, str] = {}
    for peer in peers:
        try:
            running[peer.name] = start(peer)
        except PeerError as error:
            failed[peer.name] = str(error)
    return running, failed
