"""Feature taps: read named layers of any model without changing it."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_SPEC = re.compile(r"^(?P<name>.*?)(?:\[(?P<call>-?\d+)\])?$")
# Plain, DistributedDataParallel, torch.compile, and the two in either order.
_WRAPPERS = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


class TapError(RuntimeError):
    """A tapped layer did not run, or returned no tensor."""


class FeatureTaps:
    """Collect the outputs of named layers while a model runs.

    Hooks exist only inside :meth:`capture`: outside it the model is untouched, so that ``deepcopy``,
    ``state_dict``, pickling and DDP never see them, and no graph outlives the step that made it.

    Args:
        layers: names as in ``model.named_modules()``, such as ``"body.2"``. A layer that runs several times in
            one forward gives its last output; ``"body[0]"`` or ``"body[-2]"`` names another call.

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
        """Record the layers while ``model`` runs within the block; after it the list holds one tensor per layer.

        Captures may nest and may run in any order; each fills its own list. Of a layer that returns a tuple or list
        the first tensor is recorded. The first capture of a compiled model sets options of ``torch.compile`` for the
        whole process and discards what was compiled before, so that compiled graphs see the taps and can be
        differentiated several times.

        Raises:
            ValueError: the model has no such layer (similar names are listed).
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
                raise TapError(f"layer {name!r} ran {len(outputs)} times in this forward{wanted}") from None


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
    compiled = ("_orig_mod", "_compiled_call_impl")
    return any(
        getattr(module, name, None) is not None or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
        for name in compiled
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
        if isinstance(output, (tuple, list)):
            output = next((item for item in output if isinstance(item, Tensor)), None)
        if not isinstance(output, Tensor):
            raise TapError(f"layer {name!r} returns {type(output).__name__}, not a tensor: choose another")
        outputs.append(output)

    return record


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile wrappers."""
    while isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = inner
    return model


def as_feature_map(feature: Tensor, size: tuple[int, int], channels_last: bool | None = None) -> Tensor:
    """Return a stage's output as ``(B, C, H, W)``.

    Args:
        feature: a map ``(B, C, H, W)``, which is returned as it is, a channels-last map ``(B, H, W, C)``, or tokens
            ``(B, L, C)`` in row-major order.
        size: height and width of the picture; those of channels-last maps and tokens are the picture's, divided by a
            whole number and rounded up.
        channels_last: True for a map ``(B, H, W, C)``; None decides by its shape, ``(B, C, H, W)`` if both fit.

    Raises:
        ValueError: the output is none of these.
    """
    if feature.ndim == 4:
        last = is_channels_last(feature, size) if channels_last is None else channels_last
        return feature.permute(0, 3, 1, 2) if last else feature
    if feature.ndim == 3:
        batch, length, channels = feature.shape
        for height, width in _grids(size):
            if height * width == length:
                return feature.transpose(1, 2).reshape(batch, channels, height, width)
    raise ValueError(
        f"the output of a tapped layer must be a map (B, C, H, W) or (B, H, W, C), or tokens (B, L, C) that cover the "
        f"picture {size}, got {tuple(feature.shape)}"
    )


def _grids(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the size of the picture divided by 1, 2, 3, ..."""
    return ((-(-size[0] // stride), -(-size[1] // stride)) for stride in range(1, max(size) + 1))


def is_channels_last(feature: Tensor, size: tuple[int, int]) -> bool | None:
    """Return True if a stage is a map ``(B, H, W, C)``, None if its shape also fits ``(B, C, H, W)``."""
    if feature.ndim != 4:
        return False
    grids = set(_grids(size))
    last, first = tuple(feature.shape[1:3]) in grids, tuple(feature.shape[2:]) in grids
    return None if last and first else last


def suggest_taps(
    model: nn.Module,
    sample: Tensor,
    *,
    forward_orm: Callable[[nn.Module, Tensor], object] | None = None,
    max_depth: int = 2,
) -> list[tuple[str, tuple[int, ...]]]:
    """Print the layers whose output can be a stage, in the order in which they run, with the shapes.

    Args:
        model: any network. It runs once, in eval mode and without gradient.
        sample: an input of the network.
        forward_orm: function that calls it, ``forward_orm(model, sample)``; None for ``model(sample)``.
        max_depth: depth of nested modules to include.

    Returns:
        ``(name, shape)`` of each layer that returns a feature map ``(B, C, H, W)`` or ``(B, H, W, C)``, or tokens
        ``(B, L, C)``, of at least 8 channels.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> _ = suggest_taps(model, torch.rand(1, 3, 8, 8))
        layer  type    output (calls)
        0      Conv2d  (1, 8, 6, 6)
        1      ReLU    (1, 8, 6, 6)
    """
    layers = {n: m for n, m in model.named_modules() if n and n.count(".") < max_depth}
    found: list[tuple[str, Tensor]] = []
    size = (sample.shape[-2], sample.shape[-1])
    handles = [layer.register_forward_hook(_candidate(name, found, size)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            model(sample) if forward_orm is None else forward_orm(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(name for name, _ in found)
    rows = [("layer", "type", "output (calls)")]
    candidates = {name: tuple(output.shape) for name, output in found}
    for name, shape in candidates.items():
        times = f" ({calls[name]} calls)" if calls[name] > 1 else ""
        rows.append((name, type(layers[name]).__name__, f"{shape}{times}"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for row in rows:
        print(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}")
    return list(candidates.items())


def _candidate(name: str, found: list[tuple[str, Tensor]], size: tuple[int, int]):  # type: ignore[no-untyped-def]
    def record(_module: nn.Module, _args: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.is_floating_point():
            channels_last = output.ndim == 3 or is_channels_last(output, size)
            found.extend([(name, output)] if output.shape[-1 if channels_last else 1] >= 8 else [])

    return record
