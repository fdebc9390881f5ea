"""Modules and layers: trees of parameters, dtypes, calls, errors that name the module."""

import numpy as np
import pytest

from strata.core.dtypes import bf16, f16, f32
from strata.core.errors import ShapeError, UserError
from strata.frontend import nn
from strata.frontend.nn import spec
from strata.graph import interp


class MLP(nn.Module):
    def __init__(self, size: int = 8, width: int = 16) -> None:
        self.up_proj = nn.Linear(size, width)
        self.act = nn.SiLU()
        self.down_proj = nn.Linear(width, size, bias=False)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


class Net(nn.Module):
    def __init__(self, second: int = 8) -> None:
        self.layers = nn.ModuleList([MLP(), MLP(second)])
        self.shared = self.layers[0]
        self.scale = nn.Parameter((8,))

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x * self.scale


SPEC = {"forward": {"x": spec.Tensor(["n", 8])}}


def test_named_parameters() -> None:
    names = [name for name, _ in Net().named_parameters()]
    assert names == [
        "scale",
        "layers.0.up_proj.weight",
        "layers.0.up_proj.bias",
        "layers.0.down_proj.weight",
        "layers.1.up_proj.weight",
        "layers.1.up_proj.bias",
        "layers.1.down_proj.weight",
    ]
    paths = [path for path, _ in Net().named_modules()]
    assert paths[:4] == ["", "layers", "layers.0", "layers.0.up_proj"]
    assert len(list(Net().parameters())) == 7


def test_to_changes_every_parameter() -> None:
    net = Net().to("float16")
    assert {p.dtype for p in net.parameters()} == {f16}
    assert net.to(None) is net
    with pytest.raises(UserError, match="dtype: got 'float7'"):
        net.to("float7")


def test_module_list() -> None:
    layers = nn.ModuleList()
    assert len(layers) == 0
    layers.append(nn.SiLU())
    layers.append(nn.ReLU())
    assert isinstance(layers[-1], nn.ReLU)
    assert [type(m) for m in layers[:1]] == [nn.SiLU]

    class Model(nn.Module):
        def __init__(self) -> None:
            self.stack = layers

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return self.stack(x)

    module, _ = Model().export(SPEC)
    assert [n.op for n in module["forward"].nodes] == ["input", "silu", "relu"]
    assert [n.name for n in module["forward"].nodes][1:] == ["stack.0", "stack.1"]


def test_a_net_computes_what_it_says() -> None:
    module, params = Net().export(SPEC)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(p.shape).astype(np.float32) for name, p in params.items()}
    x = rng.standard_normal((3, 8)).astype(np.float32)
    expected = x
    for i in range(2):
        up = expected @ values[f"layers.{i}.up_proj.weight"].T + values[f"layers.{i}.up_proj.bias"]
        expected = expected + (up / (1 + np.exp(-up))) @ values[f"layers.{i}.down_proj.weight"].T
    (got,) = interp.run(module["forward"], [x], values)
    np.testing.assert_allclose(got, expected * values["scale"], rtol=1e-4, atol=1e-4)


def test_errors_name_the_module() -> None:
    message = r"layers\.1\.up_proj: Linear: input f32\[n,8\] has last dim 8; expected in_features 9"
    with pytest.raises(ShapeError, match=message):
        Net(second=9).export(SPEC)


class One(nn.Module):
    """A module around one layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.RMSNorm(9), r"layer: RMSNorm: .*expected size 9"),
        (nn.LayerNorm(9), r"layer: LayerNorm: .*expected size 9"),
        (nn.GELU("fast"), r"layer: gelu: .*approximate"),
    ],
)
def test_layers_check_their_input(layer: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        One(layer).export(SPEC)


def test_scalar_input_of_a_linear() -> None:
    with pytest.raises(ShapeError, match=r"layer: Linear: input f32\[\] has last dim none"):
        One(nn.Linear(2, 2)).export({"forward": {"x": spec.Tensor([])}})


def test_linear_dtypes() -> None:
    """f32 activations stay f32 between 16-bit weights; 16-bit ones stay 16-bit."""

    def result(layer: nn.Linear, dtype: str) -> nn.Module:
        module, _ = One(layer).export({"forward": {"x": spec.Tensor(["n", 8], dtype)}})
        return module["forward"]

    mixed = result(nn.Linear(8, 4, dtype="bf16", bias_dtype="f32"), "f32")
    assert [n.op for n in mixed.nodes] == ["input", "cast", "param", "permute_dims", "matmul", "param", "add"]
    assert mixed.outputs[0].tensor.dtype is f32
    assert [p.tensor.dtype for p in mixed.params] == [bf16, f32]
    half = result(nn.Linear(8, 4, bias=False, dtype="f16"), "f16")
    assert [n.op for n in half.nodes] == ["input", "param", "permute_dims", "matmul"]
    assert half.outputs[0].tensor.dtype is f16
    assert result(nn.Linear(8, 4, dtype="f16", out_dtype="f32"), "f16").outputs[0].tensor.dtype is f32


def test_other_layers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.embed = nn.Embedding(11, 6, "f16", out_dtype="f32")
            self.norm = nn.LayerNorm(6, eps=1e-3)
            self.rms = nn.RMSNorm(6)
            self.gelu = nn.GELU("tanh")
            self.relu = nn.ReLU()

        def forward(self, ids: nn.Tensor) -> nn.Tensor:
            return self.embed.as_head(self.relu(self.gelu(self.rms(self.norm(self.embed(ids))))))

    module, params = Model().export({"forward": {"ids": spec.Tensor(["n"], "i32")}})
    function = module["forward"]
    assert function.outputs[0].tensor.shape[1] == 11
    assert function.outputs[0].name == "embed"
    assert len(function.params) == 4  # the table is one param, although it is used twice
    assert [n.attrs["eps"] for n in function.nodes if n.op == "layer_norm"] == [1e-3]
    assert params["embed.weight"].dtype is f16


def test_a_head_may_have_a_name_of_its_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.embed = nn.Embedding(11, 6)

        def forward(self, ids: nn.Tensor) -> nn.Tensor:
            return self.embed.as_head(self.embed(ids), path="head")

    function = Model().export({"forward": {"ids": spec.Tensor(["n"], "i32")}}).module["forward"]
    assert [n.name for n in function.nodes if n.op in ("take", "matmul")] == ["embed", "head"]
    assert [n.attrs["name"] for n in function.params] == ["embed.weight"]


def test_head_of_wrong_width() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.embed = nn.Embedding(11, 6)

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return self.embed.as_head(x)

    with pytest.raises(ShapeError, match=r"embed: Embedding.as_head: .*expected embedding_dim 6"):
        Model().export(SPEC)


def test_calls_outside_a_trace() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(
        UserError, match=r"Linear: modules hold no values; they compute only while Module.export"
    ):
        layer(None)
    with pytest.raises(UserError, match=r"Parameter Parameter\(f32\[2,2\]\): modules hold no values"):
        _ = layer.weight + 1.0


def test_modules_that_nobody_owns() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.hidden = [nn.Linear(8, 8)]  # a plain list: not seen

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return self.hidden[0](x)

        def weight(self, x: nn.Tensor) -> nn.Tensor:
            return x * nn.Parameter((8,))

    with pytest.raises(UserError, match="forward: Linear is called but the exported module does not own it"):
        Model().export(SPEC)
    with pytest.raises(
        UserError, match=r"weight: a parameter f32\[8\] is used that the exported module does not own"
    ):
        Model().export({"weight": SPEC["forward"]})


def test_modules_without_forward() -> None:
    with pytest.raises(UserError, match="layer: Module has no forward; define it"):
        One(nn.Module()).export(SPEC)


@pytest.mark.parametrize("shape", [(0,), (2, -1), (2.0,), (True,)])
def test_parameter_shapes(shape: tuple) -> None:
    with pytest.raises(ShapeError, match=r"Parameter: got shape .*; expected positive integers"):
        nn.Parameter(shape)


def test_parameters_know_their_type() -> None:
    weight = nn.Parameter((2, 3), "bf16")
    assert (weight.shape, weight.dtype, weight.ndim) == ((2, 3), bf16, 2)
    assert repr(weight) == "Parameter(bf16[2,3])"
    assert nn.Parameter((1,)).dtype is f32


def test_deep_models() -> None:
    """Thousands of modules below each other need no recursion in the tree walk."""
    model: nn.Module = One(nn.SiLU())
    for _ in range(3000):
        model = One(model)
    assert sum(1 for _ in model.named_modules()) == 3002
