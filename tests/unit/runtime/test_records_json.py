import copy
import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_program import RECORD

from strata.core.errors import UserError
from strata.runtime.records import CacheRecord, ProgramRecord
from strata.runtime.records_json import program_from_json, program_to_json


def test_round_trip():
    data = json.loads(json.dumps(program_to_json(RECORD)))
    assert program_from_json(data) == RECORD
    rope = CacheRecord(2, 2, 8, "bf16", 16, "normal", 4, (1.0, 0.1 + 0.2), 1.5)
    other = dataclasses.replace(RECORD, cache=rope, kernels=())
    assert program_from_json(json.loads(json.dumps(program_to_json(other)))) == other
    empty = ProgramRecord((), (), None, "", (), {})
    assert program_from_json(program_to_json(empty)) == empty


def test_whole_numbers_are_numbers():
    data = json.loads(json.dumps(program_to_json(RECORD)))
    data["cache"].update(rotary_dim=2, rope_inv_freq=[1])
    cache = program_from_json(data).cache
    assert cache is not None
    assert cache.rope_inv_freq == (1.0,)
    assert type(cache.rope_inv_freq[0]) is float


def test_defaults_are_left_out():
    args = program_to_json(RECORD)["functions"][0]["launches"][0]["args"]
    assert args[0] == {"kind": "input", "index": 0}


def changed(path: list, value: object) -> dict:
    data = copy.deepcopy(json.loads(json.dumps(program_to_json(RECORD))))
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


F, L, K = ["functions", 0], ["functions", 0, "launches", 0], ["kernels", 0]
P = ["functions", 1, "launches", 0]
CASES = [
    (["target"], 3, r"m.json: program.target: got 3; expected a text"),
    (["target"], ..., r"program: key 'target' is missing; got 'functions'"),
    (["extra"], 1, r"program: got unknown key 'extra'; expected functions, params"),
    (["functions"], {}, r"program.functions: got \{\}; expected a list"),
    (F, [1], r"program.functions\[0\]: got \[1\]; expected an object with name, inputs"),
    (["config"], [], r"program.config: got \[\]; expected an object"),
    ([*F, "arena_bytes"], True, r"functions\[0\].arena_bytes: got True; expected an integer of 63 bits"),
    ([*F, "arena_bytes"], 2**70, r"arena_bytes: got \d+; expected an integer"),
    ([*F, "arena_bytes"], -1, r"arena_bytes: got -1; expected bytes in"),
    ([*F, "name"], "peek", r"program.functions: name 'peek' occurs twice"),
    ([*F, "dims", 0, "lo"], 9, r"functions\[0\].dims\[0\]: got \('n', 9, 8\); expected a name and 0"),
    ([*F, "dims", 0, "dim"], "m", r"functions\[0\].dims: got \['m'\]; expected dims that are a whole"),
    ([*F, "inputs", 0, "shape", 0], 2, r"functions\[0\].outputs|dims that are a whole entry"),
    ([*F, "inputs", 0, "shape", 1], -4, r"inputs\[0\].shape\[1\]: got -4; expected a size that"),
    ([*F, "inputs", 0, "shape", 1], "4 %", r"shape\[1\]: got '4 %'; expected a sum of products of dims"),
    ([*F, "inputs", 0, "shape", 1], 1.5, r"inputs\[0\].shape\[1\]: got 1.5; expected an integer"),
    ([*F, "inputs", 0, "dtype"], "f8", r"inputs\[0\].dtype: got 'f8'; expected one of f64"),
    ([*F, "outputs", 0, "dtype"], "cache", r"outputs\[0\].dtype: got 'cache'; expected a tensor"),
    (["functions", 1, "inputs", 1, "shape"], [1], r"inputs\[1\].shape: got \(1,\); expected \[\] for"),
    (["cache"], None, r"functions\[1\].inputs\[1\].dtype: got 'cache'; expected no cache input"),
    ([*L, "choices"], [], r"launches\[0\].choices: got \[\]; expected at least one"),
    ([*L, "choices", 1, "when"], [{"dim": "n", "lo": 1, "hi": 2}], r"choices\[1\].when: .*the last choice"),
    ([*L, "choices", 0, "when", 0, "dim"], "m", r"choices\[0\].when\[0\].dim: got 'm'; expected one of n"),
    ([*L, "choices", 0, "kernel"], "mul", r"choices\[0\].kernel: got 'mul'; expected a kernel listed"),
    ([*L, "args", 2], ..., r"launches\[0\].args: got 2; expected 3 buffers, as mul_small takes"),
    ([*L, "num_workspace"], 2, r"launches\[0\].num_workspace: got 2; expected 0 \.\. 1, outputs of the ker"),
    ([*L, "num_workspace"], -1, r"num_workspace: got -1"),
    ([*L, "args", 0, "kind"], "heap", r"args\[0\].kind: got 'heap'; expected one of input, output, param"),
    ([*L, "args", 0, "kind"], "cache", r"args\[0\].kind: got 'cache'; expected cache for a cache input"),
    ([*L, "args", 1, "index"], 2, r"args\[1\].index: got 2; expected param index in 0 \.\. 1"),
    ([*L, "args", 2, "index"], 192, r"args\[2\].index: got 192; expected arena index in 0 \.\. 191"),
    ([*P, "args", 0, "field"], "rows", r"args\[0\].field: got 'rows'; expected one of positions"),
    ([*P, "args", 1, "layer"], 1, r"args\[1\].layer: got 1; expected 0 \.\. 0"),
    ([*K, "dims"], ["n", "m"], r"kernels\[0\].dims: got \('n', 'm'\); expected distinct names in sort"),
    ([*K, "dims"], [], r"kernels\[0\].params\[0\].shape\[0\]: got 'n'; expected dims among none"),
    ([*K, "num_outputs"], 4, r"kernels\[0\].num_outputs: got 4; expected 0 \.\. 3"),
    ([*K, "name"], "add", r"program.kernels: name 'add' occurs twice"),
    (["params", 0, "name"], "shift", r"program.params: name 'shift' occurs twice"),
    (["params", 0, "dtype"], "bool8", r"params\[0\].dtype: got 'bool8'"),
    (["params", 0, "shape"], [-1], r"params\[0\].shape: got \(-1,\); expected sizes that are not negative"),
    (["params", 0, "within"], "scale", r"params\[0\].within: got 'scale'; expected a param of as many"),
    (["params", 0, "within"], "x", r"params\[0\].within: got 'x'; expected a param of as many bytes"),
    (["cache", "num_layers"], 0, r"cache.num_layers: got 0; expected an integer in 1"),
    (["cache", "rope"], "sideways", r"cache.rope: got 'sideways'; expected one of none, normal, inline"),
    (["cache", "rotary_dim"], 3, r"cache.rotary_dim: got 3; expected an even integer in 0 .. head_dim \(2\)"),
    (["cache", "rotary_dim"], 2, r"cache.rope_inv_freq: got 0; expected rotary_dim / 2 = 1 numbers"),
    (["cache", "rope_inv_freq"], [float("nan")], r"rope_inv_freq\[0\]: got nan; expected a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "match"), CASES)
def test_mistakes_are_named(path, value, match):
    with pytest.raises(UserError, match=match):
        program_from_json(changed(path, value), "m.json")


def test_whole_entry_rule():
    data = changed(["functions", 0, "inputs", 0, "shape", 0], "2*n")
    with pytest.raises(UserError, match=r"inputs\[0\].shape\[0\]: got '2\*n'; expected dims among none"):
        program_from_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)


def nodes(value: object, path: tuple = ()):
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from nodes(child, (*path, key))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzz_never_anything_but_a_user_error(data):
    tree = program_to_json(RECORD)
    tree = json.loads(json.dumps(tree))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(nodes(tree))))
        value = data.draw(JSON | st.sampled_from(["cache", "n", "f32", 0, -1, 1, [], {}]))
        if not path:
            tree = value
            break
        at = tree
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    message = "manifest.json: program"
    try:
        assert isinstance(program_from_json(tree), ProgramRecord)
    except UserError as error:
        message = str(error)
    assert message.startswith("manifest.json: program")
