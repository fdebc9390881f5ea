"""Run a model with some of its products on photonic units, and see what that does to its predictions.

::

    simulation = simulate(DEMO_MODEL, plan)              perplexity beside the exact one
    simulator = Simulator.open(DEMO_MODEL, tokens=2048)
    simulator.run({"model.layers.0.mlp.down_proj": numerics})

The graph is interpreted in f32; the chosen products are computed by :mod:`strata.planner.numerics`, all else
exactly. The text is predicted in windows of 256 tokens without overlap, so the exact perplexity is a little
above that of ``strata perplexity``, which sees more context. Full scales of the ADCs are set once per product
on text after that which is predicted (on its beginning, if there is none after it), as one would set the gain
of a real unit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from strata.assets import DEMO_MODEL
from strata.core.errors import UserError
from strata.engine.scoring import token_divergences, token_nats
from strata.engine.tokenizer import Tokenizer
from strata.graph.cache_value import CacheValue
from strata.graph.nodes import Function
from strata.graph.types import CacheType
from strata.models import Checkpoint, build, locate, read_config
from strata.planner.devices.result import MachinePlan
from strata.planner.numerics import (
    PhotonicNumerics,
    Product,
    analog_range,
    photonic_matmul,
    product_names,
    run_with_products,
)
from strata.target.hardware import PHU

HELD_OUT = "heldout.txt"
DEFAULT_TOKENS = 2048
WINDOW = 256  # tokens; long enough for the model to settle, short enough for attention to stay cheap

Assignment = Mapping[str, PhotonicNumerics]  # by the name of a product; the others are exact
Progress = Callable[[int, int], None]  # windows done, and in all


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a model predicts with some products on photonic units.

    Attributes:
        perplexity: Per predicted token.
        exact_perplexity: Of the same tokens, with no product on a photonic unit.
        num_tokens: Predicted.
        photonic: Names of the products on photonic units.
        num_products: Products of the model, attention's included.
        loss_nats, loss_error_nats: Mean negative log likelihood per token minus that of the exact model, and
            its standard error over the tokens: what is closer is not told apart by so few tokens.
        divergence_nats, divergence_error_nats: Mean Kullback-Leibler divergence per token of the predictions
            from the exact ones, and its standard error. The loss on text that the exact model predicts as
            well as itself; never negative, and far less a matter of chance.
    """

    perplexity: float
    exact_perplexity: float
    num_tokens: int
    photonic: tuple[str, ...]
    num_products: int
    loss_nats: float
    loss_error_nats: float
    divergence_nats: float
    divergence_error_nats: float


@dataclass(frozen=True, slots=True)
class Simulator:
    """A model with its weights and a text.

    Attributes:
        function: Logits after every token.
        params: f32 weights.
        cache: An empty KV cache of one window.
        ids: i32: the tokens to predict, all but the first.
        calibration: i32: tokens for the full scales of ADCs, one window.
    """

    function: Function
    params: Mapping[str, np.ndarray]
    cache: CacheValue
    ids: np.ndarray
    calibration: np.ndarray
    _exact: list[np.ndarray] = field(default_factory=list, repr=False)
    _full_scales: dict[tuple[str, PhotonicNumerics], float] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(
        model: str | Path = DEMO_MODEL, *, tokens: int = DEFAULT_TOKENS, text: str | Path | None = None
    ) -> Simulator:
        """Read a model folder or hub id and the first tokens of a text.

        Args:
            model: A model with weights.
            tokens: How many to predict.
            text: File to predict; default: ``heldout.txt`` beside the model, else that of the demo model.

        Raises:
            UserError: the model or the text cannot be read, or there are fewer than 2 tokens.
        """
        folder = locate(model)
        ids = _read_tokens(folder, text)
        if tokens < 1 or len(ids) < 2:
            raise UserError(
                f"simulate: got {min(tokens, len(ids) - 1)} tokens to predict; expected 1 or more"
            )
        config = read_config(folder)
        window = min(WINDOW, config.max_context)
        rest = ids[tokens + 1 :]
        calibration = rest[:window] if len(rest) else ids[:window]
        definition = build(config, "f32", max_tokens=window, max_batch=1)
        cache_record, cache_type = definition.cache_record, _cache_type(definition.module["score"])
        cache = CacheValue.empty(
            cache_type,
            -(-window // cache_type.page_size),
            window,
            inv_freq=cache_record.rope_inv_freq or None,
            attention_factor=cache_record.rope_attention_factor,
        )
        params = dict(definition.load(Checkpoint(folder)))
        return Simulator(definition.module["score"], params, cache, ids[: tokens + 1], calibration)

    @property
    def products(self) -> tuple[str, ...]:
        """Names of all products, in the order of execution."""
        return product_names(self.function)

    def run(self, assignment: Assignment, *, seed: int = 0, progress: Progress | None = None) -> Simulation:
        """Predict the text with the products of ``assignment`` on photonic units.

        A product's noise depends on the seed, its name and the place in the text alone: plans are compared
        under the same noise.

        Args:
            assignment: Numerics by the name of a product.
            seed: Of the noise.
            progress: Called after every window.

        Raises:
            UserError: the model has no such product, or ``seed`` is negative.
        """
        self.check(assignment)
        if seed < 0:
            raise UserError(f"simulate: seed: got {seed}; expected 0 or more")
        if not self._exact:
            self._exact.extend(self._predicted(lambda window: lambda name, a, b: a @ b, None))
        full_scales = self._calibrated(assignment)

        def product_of(window: int) -> Product:
            def product(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
                numerics = assignment.get(name)
                if numerics is None:
                    return a @ b
                rng = np.random.default_rng([seed, window, zlib.crc32(name.encode())])
                return photonic_matmul(a, b, numerics, rng, full_scale=full_scales[name])

            return product

        # One row per token: exact nats, nats, divergence. Without photonic products, exact is what they are.
        parts = self._predicted(product_of, progress) if assignment else self._exact
        columns = [_compared(*three) for three in zip(self._exact, parts, self._windows(1), strict=True)]
        exact, nats, divergences = np.concatenate(columns, axis=1)
        loss, divergence = _mean(nats - exact), _mean(divergences)
        return Simulation(
            perplexity=math.exp(nats.mean()),
            exact_perplexity=math.exp(exact.mean()),
            num_tokens=len(nats),
            photonic=tuple(name for name in self.products if name in assignment),
            num_products=len(self.products),
            loss_nats=loss[0],
            loss_error_nats=loss[1],
            divergence_nats=divergence[0],
            divergence_error_nats=divergence[1],
        )

    def check(self, assignment: Assignment) -> None:
        """Refuse names that are no products of the model.

        Raises:
            UserError: one of them.
        """
        products = self.products
        if strangers := [name for name in assignment if name not in products]:
            some = ", ".join(products[:6])
            raise UserError(
                f"simulate: {strangers[0]!r} is no matrix product of this model; "
                f"it has {len(products)}: {some}, ..."
            )

    def _windows(self, shift: int) -> list[np.ndarray]:
        """What goes into the model (``shift`` 0), and the tokens that come after (1)."""
        size, end = self.cache.max_context, len(self.ids) - 1
        return [self.ids[k + shift : min(k + size, end) + shift] for k in range(0, end, size)]

    def _predicted(
        self, product_of: Callable[[int], Product], progress: Progress | None
    ) -> Iterator[np.ndarray]:
        """Logits of one window after the other, with the products ``product_of(number of the window)``."""
        parts = self._windows(0)
        for number, ids in enumerate(parts):
            yield self._logits(ids, product_of(number))
            if progress is not None:
                progress(number + 1, len(parts))

    def _logits(self, ids: np.ndarray, product: Product) -> np.ndarray:
        """f32 ``[n, vocab]`` after every token of a sequence of its own."""
        view = self.cache.view([0], [len(ids)])
        logits = run_with_products(self.function, [ids, view], self.params, product)[0]
        assert isinstance(logits, np.ndarray)
        return logits

    def _calibrated(self, assignment: Assignment) -> dict[str, float]:
        """Full scale of the ADC of each product."""
        keys = {name: (name, _without_converters(numerics)) for name, numerics in assignment.items()}
        missing = {name for name, key in keys.items() if key not in self._full_scales}

        def product(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            if name in missing:
                self._full_scales[keys[name]] = analog_range(a, b, assignment[name])
            return a @ b

        if missing:
            self._logits(self.calibration, product)
        return {name: self._full_scales[key] for name, key in keys.items()}


def simulate(
    model: str | Path,
    plan: MachinePlan | Mapping[str, PHU],
    *,
    numerics: PhotonicNumerics | None = None,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    point: int = 0,
    text: str | Path | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Predict a text with a model as planned.

    Args:
        model: Folder or hub id, with weights.
        plan: A plan of this model, or the photonic unit of each product that runs on one.
        numerics: Of all photonic units; default: what each unit says of itself.
        tokens: How many to predict.
        seed: Of the noise.
        point: Which of the plan's points.
        text: File to predict; default: the held-out text.
        progress: Called after every window.

    Raises:
        UserError: the model or text cannot be read, or the plan is of another model.
    """
    chosen = photonic_works(plan, point) if isinstance(plan, MachinePlan) else plan
    assignment = {name: numerics or PhotonicNumerics.of(phu) for name, phu in chosen.items()}
    return Simulator.open(model, tokens=tokens, text=text).run(assignment, seed=seed, progress=progress)


def photonic_works(plan: MachinePlan, point: int = 0) -> dict[str, PHU]:
    """The photonic unit of each work that a plan puts on one.

    Raises:
        UserError: such a work is no matrix product.
    """
    found: dict[str, PHU] = {}
    for number, work in enumerate(plan.graph.workload.works):
        device = plan.graph.machine.device(plan.device_of(number, point))
        if isinstance(device, PHU):
            if work.contraction is None:
                raise UserError(
                    f"simulate: {work.name}: {work.op} runs on {device.name}; "
                    f"expected matrix products only: nothing says what a photonic unit makes of it"
                )
            found[work.name] = device
    return found


def _compared(exact: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """f64 ``[3, tokens]``: nats with the exact logits, with the others, divergence."""
    divergences = token_divergences(exact, logits)
    return np.stack([token_nats(exact, targets), token_nats(logits, targets), divergences])


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _without_converters(numerics: PhotonicNumerics) -> PhotonicNumerics:
    """What a full scale depends on."""
    return replace(
        numerics, dac_bits=None, weight_bits=None, adc_bits=None, noise_additive=0.0, noise_multiplicative=0.0
    )


def _read_tokens(folder: Path, text: str | Path | None) -> np.ndarray:
    """The text as one document, i32."""
    own = folder / HELD_OUT
    path = Path(text) if text is not None else own if own.is_file() else DEMO_MODEL / HELD_OUT
    try:
        content = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot read the text: {error}") from None
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode(content)
    begin = tokenizer.bos_id
    return np.array(ids if begin is None or ids[:1] == [begin] else [begin, *ids], np.int32)


def _cache_type(function: Function) -> CacheType:
    return next(node.type for node in function.inputs if isinstance(node.type, CacheType))
