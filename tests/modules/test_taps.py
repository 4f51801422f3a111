"""Feature taps: they read what ran, and leave no trace on the model."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

from skt_components.modules import FeatureTaps, suggest_taps
from skt_components.modules.stage_layout import as_feature_map
from skt_components.modules.taps import choose_taps, eval_mode, find_layer


class Twice(nn.Module):
    """A network whose ``body`` runs three times and whose ``head`` returns several things."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.split = Split()
        self.unused = nn.Conv2d(8, 8, 1)
        self.words = Words()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.body(x).relu()
        self.words(x)
        return self.split(x)[1].sum(dim=1, keepdim=True)


class Split(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[str, torch.Tensor, torch.Tensor]:
        return "first tensor counts", x[:, :4], x[:, 4:]


class Words(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x}


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 9, 3, padding=1), nn.BatchNorm2d(9))


def run_tapped(model: nn.Module, layers: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    with FeatureTaps(layers).capture(model) as stages:
        model(x)
    return stages


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and hooks is not None
    )


# matches_reference


def test_the_stages_are_the_layers_outputs_in_the_order_asked_for():
    model, x = chain(), torch.rand(2, 3, 5, 7)
    with FeatureTaps(["2", "0"]).capture(model) as stages:
        model(x)
    torch.testing.assert_close(stages[1], model[0](x))
    torch.testing.assert_close(stages[0], model[2](model[1](model[0](x))))


def test_gradients_flow_through_the_stages_into_the_model():
    model, x = chain(), torch.rand(2, 3, 5, 7)
    with FeatureTaps(["2"]).capture(model) as stages:
        model(x)
    upstream = torch.randn_like(stages[0])
    got = torch.autograd.grad(stages[0], [*model[:3].parameters()], upstream)
    wanted = torch.autograd.grad(model[:3](x), [*model[:3].parameters()], upstream)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


def test_the_models_own_output_and_gradient_are_untouched():
    model, x = chain(), torch.rand(2, 3, 5, 7)
    plain = model(x)
    with FeatureTaps(["0", "2"]).capture(model):
        tapped = model(x)
    assert torch.equal(plain, tapped)
    a = torch.autograd.grad(plain.square().sum(), [*model.parameters()])
    b = torch.autograd.grad(tapped.square().sum(), [*model.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("spec", "call"), [("body", 2), ("body[0]", 0), ("body[1]", 1), ("body[-1]", 2), ("body[-3]", 0)]
)
def test_a_repeated_layer_gives_the_call_that_was_asked_for(spec, call):
    model, x = Twice(), torch.rand(1, 3, 6, 6)
    with FeatureTaps([spec]).capture(model) as stages:
        model(x)
    expected = model.stem(x)
    for i in range(call + 1):
        expected = model.body(expected.relu() if i else expected)
    torch.testing.assert_close(stages[0], expected)


def test_several_calls_of_one_layer_can_be_three_stages():
    model = Twice()
    with FeatureTaps(["body[0]", "body[1]", "body[2]"]).capture(model) as stages:
        model(torch.rand(1, 3, 6, 6))
    assert len({stage.data_ptr() for stage in stages}) == 3


def test_a_tuple_gives_its_first_tensor():
    model, x = Twice(), torch.rand(1, 3, 6, 6)
    with FeatureTaps(["split"]).capture(model) as stages:
        model(x)
    assert stages[0].shape == (1, 4, 6, 6)


def test_brackets_in_a_name_are_only_a_call_when_they_hold_a_number():
    model = nn.ModuleDict({"a[b]": nn.ReLU()})
    with FeatureTaps(["a[b]"]).capture(model) as stages:
        model["a[b]"](torch.ones(1, 2))
    assert stages[0].shape == (1, 2)


# it leaves no trace


def test_the_model_has_hooks_only_inside_the_block():
    model, taps = chain(), FeatureTaps(["0", "2"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    with taps.capture(model):
        assert count_hooks(model) == 2
        assert list(model.state_dict()) == list(before)
        model(torch.rand(1, 3, 4, 4))
    assert count_hooks(model) == 0
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_hooks_of_the_user_stay():
    model, seen = chain(), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    with FeatureTaps(["0"]).capture(model):
        model(torch.rand(1, 3, 4, 4))
    model(torch.rand(1, 3, 4, 4))
    assert len(seen) == 2
    assert count_hooks(model) == 1


@pytest.mark.parametrize("where", ["before", "inside the model", "after"])
def test_an_exception_in_the_block_leaves_no_hooks_and_passes_through(where):
    model, x = chain(), torch.rand(1, 3, 4, 4)
    if where == "inside the model":
        model[1].register_forward_pre_hook(lambda *_: 1 / 0)

    def block() -> None:
        with FeatureTaps(["0", "2"]).capture(model):
            if where == "before":
                _ = 1 / 0
            model(x)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        block()
    assert count_hooks(model) == (1 if where == "inside the model" else 0)


def test_a_missing_second_layer_leaves_no_hook_on_the_first():
    model = chain()
    with pytest.raises(ValueError, match="no layer"), FeatureTaps(["0", "nope"]).capture(model):
        pass
    assert count_hooks(model) == 0


def test_the_stages_die_when_they_are_dropped():
    model, taps = chain(), FeatureTaps(["0", "2"])
    gc.collect()
    gc.disable()  # so that only reference counts can free them: no cycle holds a step's graph
    try:
        for _ in range(3):
            with taps.capture(model) as stages:
                output = model(torch.rand(1, 3, 4, 4))
            dead = [weakref.ref(stage) for stage in stages]
            marker = nn.Module()
            stages[1].grad_fn.metadata["marker"] = marker  # lives as long as the graph does
            graph = weakref.ref(marker)
            del marker
            assert graph() is not None
            assert all(ref() is not None for ref in dead)
            del stages, output
            assert [ref() for ref in dead] == [None, None]
            assert graph() is None
    finally:
        gc.enable()


def test_the_stages_die_after_an_error_too():
    model, dead = chain(), []

    def fail(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        dead.append(weakref.ref(output))
        raise ZeroDivisionError

    model[2].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), FeatureTaps(["0", "2"]).capture(model):
        model(torch.rand(1, 3, 4, 4))
    gc.collect()
    assert dead[0]() is None


def test_captures_nest_and_each_fills_its_own_list():
    model, x = chain(), torch.rand(1, 3, 4, 4)
    with FeatureTaps(["0"]).capture(model) as outer:
        with FeatureTaps(["0", "2"]).capture(model) as inner:
            model(x)
        first = inner[0]
        model(x + 1)
    assert len(outer) == 1
    assert len(inner) == 2
    torch.testing.assert_close(outer[0], model[0](x + 1))  # the last call in its block
    torch.testing.assert_close(first, model[0](x))
    assert count_hooks(model) == 0


def test_interleaved_captures_of_two_models_do_not_mix():
    a, b, x = chain(), chain(), torch.rand(1, 3, 4, 4)
    taps = FeatureTaps(["0"])
    with taps.capture(a) as of_a, taps.capture(b) as of_b:
        b(x)
        a(x)
    assert torch.equal(of_a[0], a[0](x))
    assert torch.equal(of_b[0], b[0](x))


# copies and wrappers


def test_a_deepcopy_made_anywhere_is_clean_and_is_tapped_itself():
    model, taps, x = chain(), FeatureTaps(["0"]), torch.rand(1, 3, 4, 4)
    with taps.capture(model):
        model(x)
    twin, twin_taps = copy.deepcopy(model), copy.deepcopy(taps)
    assert count_hooks(twin) == 0
    with torch.no_grad():
        twin[0].weight.zero_()
    with twin_taps.capture(twin) as stages:
        twin(x)
    torch.testing.assert_close(stages[0], twin[0].bias.view(1, -1, 1, 1).expand_as(stages[0]))


def test_model_and_taps_pickle():
    model, taps = chain(), FeatureTaps(["0", "2[0]"])
    with taps.capture(model):
        model(torch.rand(1, 3, 4, 4))
    again = pickle.loads(pickle.dumps(taps))
    assert again.layers == taps.layers
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded, x = torch.load(buffer, weights_only=False).eval(), torch.rand(1, 3, 4, 4)
    with again.capture(loaded) as stages:
        loaded(x)
    torch.testing.assert_close(stages[0], model[0](x))


def test_distributed_data_parallel_on_one_process(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, x = chain(), torch.rand(2, 3, 4, 4)
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            with FeatureTaps(["0", "2"]).capture(wrapped) as stages:
                output = wrapped(x)
            (output.mean() + sum(stage.mean() for stage in stages)).backward()
        assert torch.equal(stages[0], model[0](x))
        assert count_hooks(model) == 0
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("compile_it", ["function", "in place"])
def test_compiled_models_give_each_capture_its_own_stages(compile_it, backend):
    model, taps = chain().eval(), FeatureTaps(["0", "2"])
    wrapped = torch.compile(model, backend=backend) if compile_it == "function" else model
    if compile_it == "in place":
        model.compile(backend=backend)
    for step in range(3):
        x = torch.rand(1, 3, 4, 4) + step
        with taps.capture(wrapped) as stages:
            wrapped(x)
        torch.testing.assert_close(stages[0], model[0](x))
        (got,) = torch.autograd.grad(stages[0].square().sum(), model[0].weight)
        (wanted,) = torch.autograd.grad(model[0](x).square().sum(), model[0].weight)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("compile_it", ["function", "in place", "forward"])
def test_a_compiled_model_that_ran_before_its_first_capture_is_compiled_again(compile_it):
    model = wrapped = chain().eval()
    if compile_it == "function":
        wrapped = torch.compile(model, backend="aot_eager")
    elif compile_it == "in place":
        model.compile(backend="aot_eager")
    else:
        model.forward = torch.compile(model.forward, backend="aot_eager")
    functorch = torch._functorch.config
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True), functorch.patch(donated_buffer=True):  # defaults
        x = torch.rand(1, 3, 4, 4)
        plain = wrapped(x)
        assert torch.equal(run_tapped(wrapped, ["0"], x)[0], model[0](x))
        assert torch.equal(wrapped(x), plain)
        assert torch.equal(run_tapped(wrapped, ["0"], x)[0], model[0](x))


@pytest.mark.parametrize("order", ["tpttppt", "tpnmtpnm"])
def test_a_compiled_model_may_run_with_and_without_taps_in_any_order_after_the_first_capture(order):
    model, runs = chain().eval(), []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]):
        runs.append(1)
        return graph.forward

    wrapped = torch.compile(model, backend=backend)
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        for letter in order:  # t, p: with and without taps; n, m: the same without gradient
            x = torch.rand(1, 3, 4, 4)
            with torch.set_grad_enabled(letter in "tp"):
                if letter in "tn":
                    assert torch.equal(run_tapped(wrapped, ["0"], x)[0], model[0](x))
                else:
                    assert torch.equal(wrapped(x), model(x))
    assert len(runs) <= len(set(order))  # compiled once for each way of running it, not at each step


@pytest.mark.parametrize("prefixes", [["module"], ["_orig_mod"], ["module", "_orig_mod"], ["_orig_mod", "module"]])
def test_names_are_found_through_any_wrappers(prefixes):
    model = chain()
    wrapped: nn.Module = model
    for prefix in reversed(prefixes):
        outer = nn.Module()
        outer.add_module(prefix, wrapped)
        wrapped = outer
    assert find_layer(wrapped, "2") is model[2]


# rejects_bad_input


@pytest.mark.parametrize("layers", [[], (), "body", [1, 2], ["a", None]])
def test_rejects_what_is_no_list_of_names(layers):
    with pytest.raises(ValueError, match="layers must be a sequence of layer names, got"):
        FeatureTaps(layers)


def test_a_wrong_name_lists_similar_ones():
    model = nn.Sequential()
    model.add_module("encoder", nn.Sequential(nn.ReLU(), nn.ReLU()))
    model.add_module("decoder", nn.ReLU())
    with pytest.raises(
        ValueError, match=r"Sequential has no layer 'encoder.7'; it has encoder, encoder.0, encoder.1"
    ) as error:
        find_layer(model, "encoder.7")
    assert "decoder" not in str(error.value)
    with pytest.raises(ValueError, match=r"no layer 'Enc'; it has encoder"):
        find_layer(model, "Enc")
    with pytest.raises(ValueError, match=r"no layer 'xyz'; it has encoder, encoder.0, encoder.1, decoder"):
        find_layer(model, "xyz")


def test_a_layer_that_does_not_run_is_an_error():
    model = Twice()
    with pytest.raises(RuntimeError, match=r"layer 'unused' ran 0 times in this forward. Possible reasons: "):
        run_tapped(model, ["unused"], torch.rand(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="layer 'stem' ran 0 times"), FeatureTaps(["stem"]).capture(model):
        pass
    assert count_hooks(model) == 0


@pytest.mark.parametrize("spec", ["body[3]", "body[-4]"])
def test_a_call_too_many_is_an_error(spec):
    call = spec[5:-1]
    with pytest.raises(RuntimeError, match=rf"layer 'body' ran 3 times in this forward, call {call} was asked for"):
        run_tapped(Twice(), [spec], torch.rand(1, 3, 4, 4))


def test_a_layer_without_a_tensor_is_an_error():
    model = Twice()
    with pytest.raises(RuntimeError, match="layer 'words' returns dict, not a tensor: choose another"):
        run_tapped(model, ["words"], torch.rand(1, 3, 4, 4))
    assert count_hooks(model) == 0


def test_len_and_repr():
    taps = FeatureTaps(("a", "b[1]"))
    assert len(taps) == 2
    assert repr(taps) == "FeatureTaps(['a', 'b[1]'])"


# as_feature_map


def test_a_map_comes_back_as_it_is():
    feature = torch.rand(2, 8, 3, 5)
    assert as_feature_map(feature, (6, 10)) is feature


@pytest.mark.parametrize("size", [(6, 10), (7, 5), (64, 64), (33, 47), (1, 9), (100, 150)])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_tokens_become_the_map_they_came_from(size, stride):
    height, width = -(-size[0] // stride), -(-size[1] // stride)
    picture = torch.randn(2, 6, height, width, requires_grad=True)
    tokens = picture.flatten(2).transpose(1, 2)
    feature = as_feature_map(tokens, size)
    assert torch.equal(feature, picture)
    (gradient,) = torch.autograd.grad((feature * picture.detach()).sum(), picture)
    assert torch.equal(gradient, picture.detach())


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 61, 8), (1, 0, 8), (2, 8), (1, 8, 2, 2, 2)])
def test_what_covers_no_picture_is_an_error(shape):
    with pytest.raises(ValueError, match=r"must be a map .*, or tokens \(B, L, C\) that cover the picture"):
        as_feature_map(torch.rand(shape), (6, 10))


@pytest.mark.parametrize("shape", [(2, 16, 16, 24), (2, 8, 12, 6), (2, 64, 64, 60)])
def test_channels_last_maps_are_recognized(shape):
    size = (64, 96) if shape[1] != shape[2] else (64, 64)
    feature = torch.randn(shape)
    assert torch.equal(as_feature_map(feature, size), feature.permute(0, 3, 1, 2))
    map_ = feature.permute(0, 3, 1, 2)
    assert as_feature_map(map_, size) is map_


def test_captures_in_two_threads_do_not_mix():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU())
    taps, wrong = FeatureTaps(["0"]), []

    def run(seed):
        value = float(seed)
        for _ in range(100):
            with taps.capture(model) as stages:
                model(torch.full((1, 1, 16, 16), value))
            expected = model[0](torch.full((1, 1, 16, 16), value))
            if not torch.equal(stages[0], expected):
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# suggest_taps


def test_suggest_taps_names_layers_that_can_be_tapped(capsys):
    model, x = Twice(), torch.rand(1, 3, 6, 6)
    found = suggest_taps(model, x)
    assert found == [("stem", (1, 8, 6, 6)), ("body", (1, 8, 6, 6))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "type", "output", "(calls)"]
    assert "body   Conv2d  (1, 8, 6, 6) (3 calls)" in lines
    with FeatureTaps([name for name, _ in found]).capture(model) as stages:
        model(x)
    assert [tuple(stage.shape) for stage in stages] == [shape for _, shape in found]


def test_suggest_taps_looks_no_deeper_than_asked(capsys):
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1))))
    assert [n for n, _ in suggest_taps(model, torch.rand(1, 3, 4, 4), max_depth=1)] == ["0"]
    assert [n for n, _ in suggest_taps(model, torch.rand(1, 3, 4, 4), max_depth=2)] == ["0.0", "0"]
    assert [n for n, _ in suggest_taps(model, torch.rand(1, 3, 4, 4))] == ["0.0.0", "0.0", "0"]


def test_suggest_taps_shows_tokens_and_takes_a_forward(capsys):
    model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 7), nn.Flatten(0))
    found = suggest_taps(model, torch.rand(1, 4, 3, 3), forward_orm=lambda m, x: m(x.flatten(2).transpose(1, 2)))
    assert found == [("0", (1, 9, 16))]


class Deep(nn.Module):
    """Blocks at depth 3 that return a map and something else, beside layers that can not be stages."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.core = nn.Module()
        self.net.core.blocks = nn.ModuleList(Pair() for _ in range(5))
        self.net.pooled, self.net.constant = nn.Linear(12, 12), nn.Linear(4, 12)
        self.net.frozen = nn.Conv2d(12, 12, 1).requires_grad_(False)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.repeat(1, 4, 1, 1)
        for block in self.net.core.blocks:
            x, _ = block(x)
        x = x * self.net.pooled(x.mean((2, 3)))[..., None, None] + self.net.constant(torch.ones(1, 5, 4)).mean()
        return self.out(self.net.frozen(x))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        return self.conv(x), (1, 2)


def test_suggest_taps_finds_stages_at_any_depth_and_in_blocks_that_return_tuples(capsys):
    found = dict(suggest_taps(Deep(), torch.rand(1, 3, 6, 6)))
    blocks = [f"net.core.blocks.{i}" for i in range(5)]
    assert list(found) == [name for block in blocks for name in (f"{block}.conv", block)] + ["net.frozen"]
    assert set(found.values()) == {(1, 12, 6, 6)}


def test_taps_are_chosen_at_thirds_of_the_outermost_layers_to_train():
    names = [name for name, _ in choose_taps(Deep(), torch.rand(1, 3, 6, 6), 3)]
    assert names == ["net.core.blocks.0", "net.core.blocks.2", "net.core.blocks.4"]


def test_a_layer_is_replaced_by_its_parts_while_there_are_too_few():
    parts = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(6)))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), parts, nn.Conv2d(8, 3, 1))
    assert [name for name, _ in choose_taps(model, torch.rand(1, 3, 6, 6), 3)] == ["1.0", "1.2", "1.5"]
    with pytest.raises(ValueError, match=r"Sequential has 2 layers that can be stages, 3 are needed: pass taps=\[3 "):
        choose_taps(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)), torch.rand(1, 3, 6, 6), 3)


def test_taps_of_a_compiled_model_are_chosen_without_compiling_it():
    model = torch.compile(Deep(), backend=lambda *_: 1 / 0)
    assert [name for name, _ in choose_taps(model, torch.rand(1, 3, 6, 6), 1)] == ["net.core.blocks.4"]


@pytest.mark.parametrize("fails", [False, True])
def test_suggest_taps_leaves_modes_hooks_and_statistics_alone(fails, capsys):
    model = chain()
    model[3].eval()
    model[0].register_forward_hook(lambda *_: None)
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}
    state = copy.deepcopy(model.state_dict())
    if fails:
        with pytest.raises(RuntimeError):
            suggest_taps(model, torch.rand(1, 99, 4, 4))
    else:
        suggest_taps(model, torch.rand(1, 3, 4, 4))
    assert [module.training for module in model.modules()] == modes
    assert count_hooks(model) == 1
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_suggest_taps_runs_in_eval_mode_and_without_gradient(capsys):
    seen = []
    model = chain().train()
    model[0].register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    suggest_taps(model, torch.rand(1, 3, 4, 4))
    assert seen == [(False, False)]


def test_eval_mode_restores_mixed_modes_after_an_error():
    model = chain().train()
    model[1].eval()
    seen = []

    def block() -> None:
        with eval_mode(model):
            seen.extend(module.training for module in model.modules())
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        block()
    assert seen == [False] * 5
    assert [module.training for module in model] == [True, False, True, True]
