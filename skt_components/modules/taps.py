"""Feature taps: read named layers of any model without changing it."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from skt_components.modules.stage_layout import StageLayout, agree, find_layouts, halve_and_double, is_certain

_LEAST_CHANNELS, _LEAST_PIXELS = 8, 4  # of a stage
_SPEC = re.compile(r"^(?P<name>.*?)(?:\[(?P<call>-?\d+)\])?$")
# Plain, DistributedDataParallel, torch.compile, and the two in either order.
_WRAPPERS = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")
_REASONS = (
    ". Possible reasons: the network takes another path for this input or mode, uses the layer's weights or forward "
    "method without calling the layer, or runs copies of it (DataParallel, torch.jit)"
)


class TapError(RuntimeError):
    """A tapped layer did not run, or returned no tensor."""


class FeatureTaps:
    """Collect the outputs of named layers while a model runs.

    Hooks exist only inside :meth:`capture`. Outside, the model has no hooks, so ``deepcopy``, ``state_dict``, pickling
    and DDP work as before. No graph is kept after the step that made it.

    Args:
        layers: names as in ``model.named_modules()``, such as ``"body.2"``. If a layer runs several times in one
            forward pass, its last output is used. ``"body[0]"`` or ``"body[-2]"`` selects another call.

    Raises:
        ValueError: ``layers`` is empty or holds something other than names.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> taps = FeatureTaps(["0", "1"])
        >>> with taps.capture(model) as stages:
        ...     _ = model(torch.rand(1, 3, 4, 4))
        >>> [tuple(stage.shape) for stage in stages]
        [(1, 8, 4, 4), (1, 8, 4, 4)]
    """

    def __init__(self, layers: Sequence[str]) -> None:
        if isinstance(layers, str) or not layers or not all(isinstance(name, str) for name in layers):
            raise ValueError(f"layers must be a sequence of layer names, got {layers!r}")
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"FeatureTaps({list(self.layers)})"

    @contextmanager
    def capture(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Record the layers while ``model`` runs inside the block. After the block, the list has one tensor per layer.

        Captures may be nested and may run in any order. Each fills its own list. If a layer returns a tuple or list,
        its first tensor is recorded. The first capture of a compiled model sets options of ``torch.compile`` for the
        whole process and discards compiled code. Then compiled graphs call the hooks and can be differentiated several
        times.

        Raises:
            ValueError: the model does not have a layer. The message lists similar names.
            TapError: a layer did not run, or not as often as its index requires, or returned no tensor.
        """
        parsed = [_parse(spec) for spec in self.layers]
        calls: list[list[Tensor]] = [[] for _ in parsed]
        handles = []
        stages: list[Tensor] = []
        if not torch.compiler.is_compiling() and _is_compiled(model):
            _prepare_compiler()
        try:
            for (name, _), outputs in zip(parsed, calls, strict=True):
                handles.append(find_layer(model, name).register_forward_hook(_recorder(name, outputs)))
            yield stages
        finally:
            for handle in handles:
                handle.remove()
        for (name, call), outputs in zip(parsed, calls, strict=True):
            try:
                stages.append(outputs[-1 if call is None else call])
            except IndexError:
                wanted = "" if call is None else f", call {call} was asked for"
                reasons = "" if outputs else _REASONS
                raise TapError(f"layer {name!r} ran {len(outputs)} times in this forward{wanted}{reasons}") from None


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule called ``name``, looking through DDP and torch.compile wrappers.

    Raises ValueError, listing similar names, when there is none.
    """
    for wrapper in _WRAPPERS:
        try:
            return model.get_submodule(wrapper + name)
        except AttributeError:
            continue
    names = [n for n, _ in model.named_modules() if n]
    root = name.split(".")[0]
    similar = [n for n in names if root.lower() in n.lower()] or names
    raise ValueError(f"{type(model).__name__} has no layer {name!r}; it has {', '.join(similar[:12])}, ...")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode within the block; afterwards every submodule has the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _is_compiled(model: nn.Module) -> bool:
    """Return True after ``torch.compile(module)``, ``module.compile()`` or ``module.forward = torch.compile(...)``."""
    return any(
        getattr(module, "_orig_mod", None) is not None
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def _prepare_compiler() -> None:
    """Let compiled graphs depend on hooks, and keep their buffers for a second backward pass (``retain_graph``)."""
    config = torch._dynamo.config
    if config.skip_nnmodule_hook_guards or torch._functorch.config.donated_buffer:
        config.skip_nnmodule_hook_guards = torch._functorch.config.donated_buffer = False
        torch._dynamo.reset()  # a graph from before would be reused with its old options


def _parse(spec: str) -> tuple[str, int | None]:
    match = _SPEC.match(spec)
    assert match is not None
    call = match["call"]
    return match["name"], None if call is None else int(call)


def _recorder(name: str, outputs: list[Tensor]):  # type: ignore[no-untyped-def]
    thread = threading.get_ident()  # the same model may be running in another thread, with a capture of its own

    def record(_module: nn.Module, _args: object, output: object) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() != thread:
            return
        output = _first_tensor(output)
        if not isinstance(output, Tensor):
            raise TapError(f"layer {name!r} returns {type(output).__name__}, not a tensor: choose another")
        outputs.append(output)

    return record


def _first_tensor(output: object) -> object:
    """Return the first tensor of a tuple or list, and anything else unchanged."""
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return output


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile wrappers."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model


def suggest_taps(
    model: nn.Module,
    sample: Tensor,
    *,
    forward_orm: Callable[[nn.Module, Tensor], object] | None = None,
    max_depth: int | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Print the layers whose output can be a stage, in the order in which they run, with the shapes.

    Args:
        model: any network. It runs once in eval mode without gradient. If the shapes are ambiguous, it runs again on a
            picture of half the height.
        sample: an input of the network.
        forward_orm: function that calls it, ``forward_orm(model, sample)``; None for ``model(sample)``.
        max_depth: depth of nested modules to include; None for all.

    Returns:
        ``(name, shape)`` of each layer whose output the framework can align: maps, tokens, and first tensors of tuples.
        They have at least 8 channels.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> _ = suggest_taps(model, torch.rand(1, 3, 8, 8))
        layer  type    output (calls)
        0      Conv2d  (1, 8, 6, 6)
        1      ReLU    (1, 8, 6, 6)
    """
    layers = {n: m for n, m in model.named_modules() if n and (max_depth is None or n.count(".") < max_depth)}
    found = _find_stages(model, layers, sample, forward_orm)
    rows = [("layer", "type", "output (calls)")]
    for name, (shape, calls) in found.items():
        times = f" ({calls} calls)" if calls > 1 else ""
        rows.append((name, type(layers[name]).__name__, f"{shape}{times}"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
    return [(name, shape) for name, (shape, _) in found.items()]


def choose_taps(
    model: nn.Module, sample: Tensor, count: int, forward_orm: Callable[[nn.Module, Tensor], object] | None = None
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of ``count`` stages of a network, at equal distances in the order of execution.

    A candidate is a layer with trained weights whose output can be a stage. The outermost candidates are taken. While
    there are too few, a layer is replaced by its parts. Layers with the exposures in the batch are used only if there
    are too few other layers.

    Raises:
        ValueError: the network has fewer such layers.
    """
    network = unwrap(model)
    trained = {n: m for n, m in network.named_modules() if n and any(p.requires_grad for p in m.parameters())}
    for folded in (False, True):
        found = _find_stages(model, trained, sample, forward_orm, folded=folded)
        names = _expand(list(found), count)
        if len(names) >= count:
            ends = (len(names) * part // count - 1 for part in range(1, count + 1))
            return [(names[end], found[names[end]][0]) for end in ends]
    raise ValueError(
        f"{type(network).__name__} has {len(names)} layers that can be stages, {count} are needed: pass taps=[{count} "
        "layer names]. Each layer must have weights and return a map (B, C, H, W) or tokens (B, L, C) with at least "
        f"{_LEAST_CHANNELS} channels"
    )


def _expand(names: Sequence[str], count: int) -> list[str]:
    """Return the outermost layers, of which the largest are replaced by their parts until there are ``count``."""
    outermost = _outermost(names)
    while len(outermost) < count:
        parts = {name: sum(other.startswith(f"{name}.") for other in names) for name in outermost}
        largest = max(parts, key=lambda name: parts[name], default="")
        if not parts.get(largest):
            break
        names = [name for name in names if name != largest]
        outermost = _outermost(names)
    return outermost


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _find_stages(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    sample: Tensor,
    forward_orm: Callable[[nn.Module, Tensor], object] | None,
    folded: bool = True,
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and number of calls of each layer whose output can be a stage, in the order of the last calls.

    Args:
        folded: include layers whose batch holds the exposures.
    """
    frames = sample.shape[1] if sample.ndim == 5 else 1

    def run(pictures: Tensor) -> tuple[dict[str, list[tuple[int, ...]]], dict[str, list[StageLayout]]]:
        shapes = _record_shapes(model, layers, pictures, forward_orm)
        size, batch = (pictures.shape[-2], pictures.shape[-1]), len(pictures)
        found = {name: find_layouts(calls[-1], size, batch, frames) for name, calls in shapes.items()}
        return shapes, {n: [layout for layout in of if folded or layout.frames == 1] for n, of in found.items()}

    shapes, layouts = run(sample)
    if not all(is_certain(of) for of in layouts.values() if of):
        with suppress(Exception):  # a network may raise anything on input that it was not made for
            others, second = run(halve_and_double(sample))
            layouts = {
                name: agree(of, shapes[name][-1], second.get(name, []), others.get(name, [()])[-1])
                for name, of in layouts.items()
            }
    found = {name: (calls[-1], len(calls)) for name, calls in shapes.items() if layouts[name]}
    channels = {name: layouts[name][0].count_channels(shape) for name, (shape, _) in found.items()}
    pixels = {name: math.prod(shape) // (channels[name] * len(sample)) for name, (shape, _) in found.items()}
    return {n: row for n, row in found.items() if channels[n] >= _LEAST_CHANNELS and pixels[n] >= _LEAST_PIXELS}


def _record_shapes(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    sample: Tensor,
    forward_orm: Callable[[nn.Module, Tensor], object] | None,
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of each layer's outputs, in the order of the layers' last calls."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, _args: object, output: object) -> None:
            output = _first_tensor(output)
            if isinstance(output, Tensor) and output.is_floating_point():
                shapes[name] = [*shapes.pop(name, []), tuple(output.shape)]

        return record

    handles = [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), eval_mode(model), torch.compiler.set_stance("force_eager"):
            model(sample) if forward_orm is None else forward_orm(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
