"""A language model that runs: text in, text out, logits, perplexity.

::

    prompt --tokenizer--> ids --BatchRunner: prefill, decode, sample--> tokens --StreamDecoder, StopBuffer-->
    text

The model is a compiled program with the functions ``prefill``, ``decode`` and (for logits) ``score``; its
configuration and the KV cache are described by the program's record.
"""

from __future__ import annotations

import itertools
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from strata.core.errors import UserError
from strata.runtime.records import ProgramRecord

from .batch import BatchRunner, FinishReason, Model, Request
from .chat import Message
from .forward import ForwardPass, forward_pass
from .kv_cache import PagedKVCache, pages_that_fit
from .sampling import Sampler, SamplingParams, sampling_params
from .scoring import negative_log_likelihood, score
from .stop import StopBuffer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from strata.runtime.nodes import NodeInfo
    from strata.runtime.program import Program
    from strata.runtime.stepping import Run

Prompt = str | Sequence[int] | np.ndarray

DEFAULT_PREFILL_CHUNK = 512  # tokens


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """Speed and size of one generation.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        generated_tokens: Tokens sampled, the one that ended it included.
        ttft_s: From the request to the first token.
        prefill_s: In the forward passes that read the prompt.
        decode_s: In the passes after the first token, sampling included.
        peak_rss_bytes: Largest resident memory of the process so far.
    """

    prompt_tokens: int
    generated_tokens: int
    ttft_s: float
    prefill_s: float
    decode_s: float
    peak_rss_bytes: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second of prefill."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first, per second; 0 where there is only one."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of one prompt.

    Attributes:
        text: Generated text, without special tokens and without the stop string.
        token_ids: Generated tokens, the one that ended it included.
        prompt_ids: Tokens of the prompt.
        finish_reason: Why it ended.
        stopped_by: The stop string or token that ended it; ``None`` for LENGTH.
        stats: Speed and size.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    finish_reason: FinishReason
    stopped_by: str | int | None
    stats: GenerationStats


class TextStream:
    """Iterator of text pieces; closing or dropping it frees its sequence.

    Attributes:
        prompt_tokens: Tokens of the prompt.
    """

    def __init__(self, pieces: Iterator[tuple[Request, str]], request: Request) -> None:
        self._pieces = pieces
        self._request = request
        self.prompt_tokens = len(request.prompt_ids)

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        for _, piece in self._pieces:
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """Stop generating and free the sequence."""
        self._pieces.close()  # type: ignore[attr-defined]

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def generation(self) -> Generation:
        """The whole result, once the stream has ended.

        Raises:
            UserError: it has not ended.
        """
        if self._request.finish_reason is None:
            raise UserError("stream: the generation has not ended; iterate to the end first")
        return _result(self._request)


class LanguageModel:
    """A compiled language model with its tokenizer and KV cache.

    Args:
        program: Compiled functions (``runtime.program.Program``).
        tokenizer: ``None`` for a model without one: prompts are then token ids, and there is no text.
        max_context: Longest sequence, tokens; default and upper limit is what the program was compiled for.
        max_batch: Most sequences per forward pass; likewise.
        num_pages: Pages of the KV pool; default: ``max_batch`` sequences of ``max_context`` tokens.
        prefill_chunk: Most prompt tokens per forward pass.

    Attributes:
        cache: The KV pool, created once.
        load_s: How long it took to get the model ready; whoever loads or compiles it says so.
        was_compiled: Whether that included compiling.

    Raises:
        UserError: the program has no KV cache or lacks a function, its configuration is incomplete, or a
            limit is out of range.
    """

    def __init__(
        self,
        program: Model,
        tokenizer: Tokenizer | None,
        *,
        max_context: int | None = None,
        max_batch: int | None = None,
        num_pages: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        record = program.record
        if record.cache is None or "prefill" not in program or "decode" not in program:
            raise UserError(
                "language model: the program has no KV cache, prefill or decode; compile a language model"
            )
        _check_outputs(record)
        self.program = program
        self.tokenizer = tokenizer
        self.vocab_size = _config_int(record, "vocab_size", None, None)
        self.max_context = _config_int(record, "max_context", max_context, None)
        self.max_batch = _config_int(record, "max_batch", max_batch, 1)
        longest = program["prefill"].dim_range("n")[1]
        chunk = _config_int(record, "prefill_chunk", prefill_chunk, min(DEFAULT_PREFILL_CHUNK, longest))
        self.prefill_chunk = min(chunk, longest, self.max_context)
        known = tokenizer.eos_ids if tokenizer is not None else ()
        self.eos_token_ids = frozenset((*_config_tokens(record, "eos_token_ids"), *known))
        if num_pages is None:
            one = -(-self.max_context // record.cache.page_size)
            fit = pages_that_fit(record.cache)
            # Rather fewer pages than sequences could fill, but one sequence must find room.
            num_pages = self.max_batch * one if fit is None else max(one, min(self.max_batch * one, fit))
        self.cache = PagedKVCache(record.cache, num_pages, self.max_context, self.max_batch)
        self._lock = threading.RLock()
        self._seq_ids = itertools.count()
        self.load_s = 0.0
        self.was_compiled = False

    @classmethod
    def load(cls, folder: Path | str, num_threads: int | None = None, **limits: Any) -> LanguageModel:
        """The model in an artifact folder.

        Args:
            folder: Made by ``strata compile``.
            num_threads: Of the thread pool; ``None`` = one per CPU.
            limits: ``max_context``, ``max_batch``, ``num_pages``, ``prefill_chunk``.

        Raises:
            UserError: see ``runtime.artifact.open_artifact`` and ``Tokenizer.from_folder``.
        """
        from strata.runtime.program import Program

        start = time.perf_counter()
        program = Program.load(folder, num_threads)
        tokenizer = Tokenizer.from_folder(folder) if (Path(folder) / "tokenizer.json").exists() else None
        model = cls(program, tokenizer, **limits)
        model.load_s = time.perf_counter() - start
        return model

    @property
    def config(self) -> dict[str, object]:
        """Configuration that the compiler recorded: ``model_name``, ``architecture``, ``format``, ..."""
        return self.program.record.config

    # Nodes.

    def nodes(self, function: str = "decode") -> tuple[NodeInfo, ...]:
        """The nodes of a function, in the order of execution; see ``Program.nodes``.

        Raises:
            UserError: no such function.
        """
        return self.stepping_program.nodes(function)

    def forward_pass(self, function: str, prompt: Prompt) -> ForwardPass:
        """The last forward pass over a prompt, on a KV cache of its own: to step through, time or compare.

        Args:
            function: ``decode`` runs the last token of the prompt; ``prefill`` and ``score`` all of them, or
                the last ones where the prompt is longer than one pass.
            prompt: Text, or token ids.

        Raises:
            UserError: no such function, or the prompt has no tokens or too many.
        """
        ids = self._ids(prompt, add_special=True)
        self._check_length(len(ids), self.max_context)
        return forward_pass(self.stepping_program, function, ids)

    def step(self, function: str, prompt: Prompt, keep: Any = ()) -> Run:
        """Launch a forward pass over ``prompt`` node by node; see ``Program.step``.

        Raises:
            UserError: as :meth:`forward_pass`; ``keep`` names no node.
        """
        return self.forward_pass(function, prompt).step(keep)

    @property
    def stepping_program(self) -> Program:
        """The program, as one whose launches can be made one by one."""
        from strata.runtime.program import Program

        assert isinstance(self.program, Program)  # stand-ins of tests have no launches
        return self.program

    # Text.

    @overload
    def generate(self, prompt: str, params: SamplingParams | None = None, **options: Any) -> Generation: ...

    @overload
    def generate(
        self, prompt: Sequence[Any] | np.ndarray, params: Any = None, **options: Any
    ) -> Generation | list[Generation]: ...

    def generate(self, prompt: Any, params: Any = None, **options: Any) -> Any:
        """Continue a prompt, or several at once in shared forward passes.

        Args:
            prompt: Text, or token ids; or a list of such prompts.
            params: How to sample (default: greedy, 256 tokens); for a list of prompts also a list, one for
                each.
            options: Fields of ``SamplingParams`` that override ``params``.

        Returns:
            A generation, or a list of them for a list of prompts.

        Raises:
            UserError: impossible parameters, an empty prompt, a prompt beyond the context, KV pages
                exhausted.

        Example:
            >>> model.generate("def read(path):", max_tokens=20).text  # doctest: +SKIP
        """
        many = isinstance(prompt, (list, tuple)) and any(not isinstance(p, (int, np.integer)) for p in prompt)
        prompts = list(prompt) if many else [prompt]
        each = list(params) if isinstance(params, (list, tuple)) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise UserError(
                f"generate: got {len(each)} parameter sets for {len(prompts)} prompts; expected as many"
            )
        requests = [self._request(p, sampling_params(q, options)) for p, q in zip(prompts, each, strict=True)]
        for _ in self._run(requests):
            pass
        results = [_result(r) for r in requests]
        return results if many else results[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> TextStream:
        """Like :meth:`generate` for one prompt, giving the text piece by piece as it comes."""
        request = self._request(prompt, sampling_params(params, options))
        return TextStream(self._run([request]), request)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """The assistant's answer to a conversation.

        Args:
            messages: Dicts with ``role`` and ``content``, oldest first.
            params: How to sample.
            template_options: Variables for the model's chat template (``tools``, ``enable_thinking``, ...).
            options: Fields of ``SamplingParams``.

        Raises:
            UserError: the model has no chat template or it refuses the messages; otherwise as
                :meth:`generate`.
        """
        with self.stream_chat(messages, params, template_options=template_options, **options) as stream:
            for _ in stream:
                pass
            return stream.generation

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        template_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> TextStream:
        """Like :meth:`chat`, giving the text piece by piece as it comes."""
        ids = self.chat_prompt(messages, **(template_options or {}))
        request = self._request(ids, sampling_params(params, options), continues=False)
        return TextStream(self._run([request]), request)

    def chat_prompt(self, messages: Sequence[Message], **template_options: Any) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer."""
        tokenizer = self._need_tokenizer("chat")
        template = tokenizer.chat_template(tools=bool(template_options.get("tools")))
        return tokenizer.encode(template.render(messages, **template_options), add_special=False)

    # Numbers.

    def logits(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits at every position.

        Args:
            token_ids: ``[len]``, at most the context.

        Returns:
            f32 ``[len, vocab]``: row t scores the token after ``token_ids[: t + 1]``.

        Raises:
            UserError: no tokens, more than the context, an id outside of the vocabulary, or a program without
                ``score``.
        """
        ids = self._token_array(token_ids)
        self._check_length(len(ids), self.max_context)
        out = np.empty((len(ids), self.vocab_size), np.float32)
        with self._lock:
            for _ in score(self.program, self.cache, ids, self._new_id(), self.prefill_chunk, out):
                pass
        return out

    def perplexity(
        self,
        text: Prompt,
        window: int | None = None,
        stride: int | None = None,
        *,
        add_special: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> float:
        """Perplexity of a text: ``exp`` of the mean negative log likelihood per predicted token.

        Every token but the first is predicted once, from the tokens before it in its window. Windows begin
        every ``stride`` tokens; with ``stride < window`` a token has at least ``window - stride`` tokens of
        context.

        Args:
            text: Text, or token ids.
            window: Tokens per window; default: the context.
            stride: Tokens between the beginnings of windows; default: ``window``.
            add_special: Encode a text with the special tokens that the tokenizer adds.
            progress: Called with predictions done and in all, after every window.

        Raises:
            UserError: fewer than two tokens, or window and stride out of range.
        """
        ids = self._ids(text, add_special)
        window = self.max_context if window is None else window
        stride = window if stride is None else stride
        if len(ids) < 2:
            raise UserError(f"perplexity: got {len(ids)} tokens; expected at least 2")
        if not 1 <= stride <= window <= self.max_context:
            raise UserError(
                f"perplexity: got window {window}, stride {stride}; "
                f"expected 1 <= stride <= window <= {self.max_context}"
            )
        with self._lock:
            total = 0.0
            for begin, first, end in _windows(len(ids), window, stride):
                part = score(self.program, self.cache, ids[begin:end], self._new_id(), self.prefill_chunk)
                total += negative_log_likelihood(part, ids[begin + 1 : end + 1], first - begin)
                if progress is not None:
                    progress(end, len(ids) - 1)
        return float(np.exp(total / (len(ids) - 1)))

    # Requests.

    def _run(self, requests: list[Request]) -> Iterator[tuple[Request, str]]:
        runner = BatchRunner(self.program, self.cache, self.prefill_chunk, self._lock)
        for request in requests:
            runner.add(request)
        return runner.run()

    def _request(self, prompt: Prompt, params: SamplingParams, continues: bool = True) -> Request:
        ids = self._ids(prompt, add_special=True)
        self._check_length(len(ids), self.max_context - 1)
        if params.stop:
            self._need_tokenizer("a stop string")
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        return Request(
            seq_id=self._new_id(),
            prompt_ids=ids,
            params=params,
            stop_ids=eos | frozenset(params.stop_token_ids),
            sampler=Sampler(params, ids.tolist(), self.vocab_size),
            stop=StopBuffer(params.stop),
            decoder=None if self.tokenizer is None else self.tokenizer.stream(continues=continues),
        )

    def _new_id(self) -> int:
        return next(self._seq_ids)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{what} needs a tokenizer; this model has none: pass token ids")
        return self.tokenizer

    def _ids(self, prompt: Prompt, add_special: bool) -> np.ndarray:
        if not isinstance(prompt, str):
            return self._token_array(prompt)
        tokenizer = self._need_tokenizer("a text prompt")
        ids = tokenizer.encode(prompt, add_special=add_special)
        if not ids and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id]
        return self._token_array(ids)

    def _token_array(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """i32 ids, every one of them a row of the embedding: the native code reads that row unchecked."""
        try:
            ids = np.asarray(token_ids)
        except ValueError as error:
            raise UserError(f"token ids: {error}") from error
        if ids.size == 0:
            raise UserError("prompt: it has no tokens; expected at least one")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise UserError(f"token ids: got {str(token_ids)[:60]}; expected a list of integers")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if len(wrong):
            first = int(wrong[0])
            raise UserError(
                f"token ids: got {ids[first]} at position {first}; expected 0 .. {self.vocab_size - 1}"
            )
        return ids.astype(np.int32)

    def _check_length(self, length: int, most: int) -> None:
        if length > most:
            raise UserError(
                f"prompt has {length} tokens, context is {self.max_context}; "
                "shorten the prompt or compile the model with a larger --max-context"
            )


def _windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """``(begin, first, end)``: run tokens ``begin .. end - 1``; predictions count from the one of row
    ``first``.
    """
    done = 0  # rows whose predictions are counted: 0 .. length - 2 in the end
    for begin in range(0, length - 1, stride):
        end = min(begin + window, length - 1)
        if end > done:
            yield begin, done, end
            done = end


def _check_outputs(record: ProgramRecord) -> None:
    """``prefill`` and ``decode`` must give the logits and the likeliest token of each sequence."""
    for function in record.functions:
        kinds = [(o.dtype, len(o.shape)) for o in function.outputs]
        if function.name in ("prefill", "decode") and kinds != [("f32", 2), ("i32", 1)]:
            got = ", ".join(f"{o.dtype}[{','.join(map(str, o.shape))}]" for o in function.outputs)
            raise UserError(
                f"language model: {function.name}: got outputs ({got}); expected logits f32[num_seqs,vocab] "
                "and their argmax i32[num_seqs]; return both"
            )


def _config_int(record: ProgramRecord, key: str, wanted: int | None, default: int | None) -> int:
    """A size from the configuration; ``wanted`` may lower it."""
    value = record.config.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(
            f"language model: the program's config has {key} = {value!r:.40}; expected an integer >= 1"
        )
    if wanted is None:
        return value
    if type(wanted) is not int or not 1 <= wanted <= value:
        raise UserError(
            f"language model: {key}: got {wanted!r:.40}; expected 1 .. {value}, what it was compiled for"
        )
    return wanted


def _config_tokens(record: ProgramRecord, key: str) -> tuple[int, ...]:
    """Tokens from the configuration; none where it has no such key."""
    found = record.config.get(key, ())
    if not isinstance(found, (list, tuple)) or any(type(token) is not int for token in found):
        raise UserError(
            f"language model: the program's config has {key} = {found!r:.40}; expected a list of integers"
        )
    return tuple(found)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss is inherited from the process that started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux


def _result(request: Request) -> Generation:
    assert request.finish_reason is not None
    stats = GenerationStats(
        prompt_tokens=len(request.prompt_ids),
        generated_tokens=len(request.token_ids),
        ttft_s=request.first_token_s - request.submitted_s,
        prefill_s=request.prefill_s,
        decode_s=request.decode_s,
        peak_rss_bytes=peak_rss_bytes(),
    )
    return Generation(
        text=request.text,
        token_ids=tuple(request.token_ids),
        prompt_ids=tuple(request.prompt_ids.tolist()),
        finish_reason=request.finish_reason,
        stopped_by=request.stopped_by,
        stats=stats,
    )
