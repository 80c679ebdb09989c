"""State dicts of the original PyTorch package `xlstm` (its class xLSTMLMModel) as parameters of our model, and back.

One table says for every tensor of the package which parameters of ours it holds and how. Three things in it are traps:

* The modules are called for the wrong gates: `fgate` drives the input gate of the sLSTM, `igate` its forget gate. The
  place decides, not the name.
* Norm weights are stored as the difference to one.
* The recurrent weights and biases of the sLSTM are stored in the layout of the backend that made them. With H heads of
  D features, "vanilla" has kernels (H, 4 D out, D in) and biases in the order (gate, head, feature), "cuda" kernels
  (H, D in, 4 D out) and biases in the order (head, gate, feature). The biases are flat in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.formats.base import (
    HEAD,
    Format,
    ReadOptions,
    Tensors,
    Weights,
    Written,
    compute_dtype,
    head_of,
    unwrapped,
)
from xlstm_jax.hub.formats.xlstm_package_config import (
    Backend,
    backend_of,
    config_from_xlstm_package,
    parse_package_config,
    xlstm_package_from_config,
)
from xlstm_jax.hub.kept import Record
from xlstm_jax.hub.mapping import (
    FLOATS,
    WIDE_FLOATS,
    Entry,
    Form,
    dense,
    on_device,
    params_from_tensors,
    single,
    tensors_from_params,
)
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

_NORM = Form(one_plus=True)
_NORM_OF_HEADS = Form("head f -> (head f)", one_plus=True)
# The oldest tap first, as in ours.
_CONV = Form("tap one f -> f one tap")

_LANDMARKS = ("token_embedding.weight", HEAD)

_KERNEL, _BIAS = "_recurrent_kernel_", "_bias_"
# By the backend, and by the tensor's number of axes: outside, the package shows the weights of "cuda" with more.
_RECURRENT: dict[str, dict[tuple[Backend, int], Form]] = {
    _KERNEL: {
        ("vanilla", 3): Form("gate head out in -> head (gate out) in"),
        ("cuda", 3): Form("gate head out in -> head in (gate out)"),
        ("cuda", 4): Form("gate head out in -> head in gate out"),
    },
    _BIAS: {
        ("vanilla", 1): Form("gate head f -> (gate head f)"),
        ("cuda", 1): Form("gate head f -> (head gate f)"),
        ("cuda", 3): Form("gate head f -> head gate f"),
    },
}


def _entries(
    config: xLSTMLMModelConfig, layout: Backend, tensors: Mapping[str, Any], head: bool = True
) -> Iterator[Entry]:
    """Every tensor that the package can have, and what of ours it holds; `tensors` are those that are there, whose
    number of axes counts, `head` says whether `lm_head.weight` is among them."""
    yield single("token_embedding.weight", "token_embedding.embedding")
    for i, kind in enumerate(config.block_kinds):
        theirs, ours = f"xlstm_block_stack.blocks.{i}", f"xlstm_block_stack.blocks_{i}"
        yield single(f"{theirs}.xlstm_norm.weight", f"{ours}.norm.scale", _NORM)
        yield single(f"{theirs}.xlstm.conv1d.conv.weight", f"{ours}.xlstm.conv.kernel", _CONV)
        yield single(f"{theirs}.xlstm.conv1d.conv.bias", f"{ours}.xlstm.conv.bias")
        yield from (_slstm(theirs, ours, layout, tensors) if kind == "slstm" else _mlstm(theirs, ours))
    yield single("xlstm_block_stack.post_blocks_norm.weight", "xlstm_block_stack.post_blocks_norm.scale", _NORM)
    if head:
        yield head_of(config)


def _mlstm(theirs: str, ours: str) -> Iterator[Entry]:
    layer, own = f"{theirs}.xlstm", f"{ours}.xlstm"
    yield from dense(f"{layer}.proj_up", f"{own}.proj_up_mlstm", f"{own}.proj_up_z")
    for name in "qkv":
        yield single(f"{layer}.{name}_proj.weight", f"{own}.{name}.kernel")
        yield single(f"{layer}.{name}_proj.bias", f"{own}.{name}.bias")
    yield from dense(f"{layer}.mlstm_cell.igate", f"{own}.cell.igate")
    yield from dense(f"{layer}.mlstm_cell.fgate", f"{own}.cell.fgate")
    yield single(f"{layer}.mlstm_cell.outnorm.weight", f"{own}.cell.out_norm.scale", _NORM_OF_HEADS)
    yield single(f"{layer}.learnable_skip", f"{own}.learnable_skip")
    yield from dense(f"{layer}.proj_down", f"{own}.proj_down")


def _slstm(theirs: str, ours: str, layout: Backend, tensors: Mapping[str, Any]) -> Iterator[Entry]:
    layer, own = f"{theirs}.xlstm", f"{ours}.xlstm"
    for name, gate in (("fgate", "i"), ("igate", "f"), ("zgate", "z"), ("ogate", "o")):
        yield single(f"{layer}.{name}.weight", f"{own}.{gate}.kernel")
    for name, path in ((_KERNEL, "recurrent_kernel"), (_BIAS, "bias")):
        full, forms = f"{layer}.slstm_cell.{name}", _RECURRENT[name]
        axes = len(np.shape(tensors[full])) if full in tensors else 0
        flat = next(form for (backend, _), form in forms.items() if backend == layout)
        yield single(full, f"{own}.cell.{path}", forms.get((layout, axes), flat))
    yield single(f"{layer}.group_norm.weight", f"{own}.group_norm.scale", _NORM_OF_HEADS)
    yield single(f"{theirs}.ffn_norm.weight", f"{ours}.ffn_norm.scale", _NORM)
    yield from dense(f"{theirs}.ffn.proj_up", f"{ours}.ffn.proj_up_gate", f"{ours}.ffn.proj_up")
    yield from dense(f"{theirs}.ffn.proj_down", f"{ours}.ffn.proj_down")


def params_from_xlstm_package(
    tensors: Mapping[str, Any], config: str | Mapping[str, Any], recurrent_layout: Backend | None = None
) -> dict[str, Any]:
    """The parameters of `xLSTMLMModel(config_from_xlstm_package(config))` from a state dict of the package.

    Args:
        tensors: the names of the package -> arrays. A prefix that all names have in common (`module.`, `_orig_mod.`) is
            left out.
        config: the package's config, as `config_from_xlstm_package` takes it.
        recurrent_layout: which backend stored the recurrent weights and biases of the sLSTM. None: told from the
            shapes of the kernels, if these are of the backend that the config names.

    Returns:
        Nested dicts of arrays, as `model.init(...)["params"]`, in the dtypes of the tensors; the scales of norms, which
        the package stores as the difference to one, are float32 at least.

    Raises:
        WeightsError: unless every tensor of the package is used and every parameter of ours is found, in its shape, or
            if the recurrent layout cannot be told. The message names all that is wrong; nothing is returned.
        ConfigError: for a config that no model can be built from.
    """
    return _params(tensors, parse_package_config(config), config_from_xlstm_package(config), recurrent_layout)


def _params(
    tensors: Mapping[str, Any],
    package: Mapping[str, Any],
    config: xLSTMLMModelConfig,
    asked: Backend | None,
    convert: Callable[[np.ndarray], Any] = np.ascontiguousarray,
    **more: Any,
) -> dict[str, Any]:
    tensors, _ = unwrapped(tensors, _LANDMARKS)
    problems: list[str] = []
    if config.tie_weights:
        tensors = _untied(tensors, problems)
    layout = _recurrent_layout(tensors, config, asked, backend_of(package))
    entries = _entries(config, layout, tensors, head=not config.tie_weights)
    return params_from_tensors(entries, config, tensors, convert, problems=problems, **{"floats": WIDE_FLOATS} | more)


def xlstm_package_from_params(
    params: Mapping[str, Any], config: xLSTMLMModelConfig, recurrent_layout: Backend = "vanilla"
) -> dict[str, np.ndarray]:
    """The state dict of the package for parameters of our model: the inverse of `params_from_xlstm_package`.

    Exact in every bit, but for scales of norms below a half: the package adds one to what it stores, which leaves them
    a multiple of 2^-24 in float32.

    Args:
        params: the parameters of `xLSTMLMModel(config)`, in any runs of blocks.
        config: a config such as `config_from_xlstm_package` returns.
        recurrent_layout: the backend that shall read the state dict.

    Raises:
        WeightsError: for parameters that the package has no place for, that are not the model's or that `params` lacks.
    """
    written = tensors_from_params(_entries(config, recurrent_layout, {}), config, params)
    return {name: np.ascontiguousarray(tensor.values()) for name, tensor in written.items()}


def _untied(tensors: Mapping[str, Any], problems: list[str]) -> Mapping[str, Any]:
    """Without the head, which is the embedding; files that store shared tensors once may have it under either name."""
    rest = dict(tensors)
    head = rest.pop("lm_head.weight", None)
    if head is None:
        return rest
    embedding = rest.setdefault("token_embedding.weight", head)
    if embedding is not head and not np.array_equal(np.asarray(embedding), np.asarray(head)):
        problems.append("ambiguous: lm_head.weight differs from token_embedding.weight, but config.tie_weights is True")
    return rest


def _recurrent_layout(
    tensors: Mapping[str, Any], config: xLSTMLMModelConfig, asked: Backend | None, backend: Backend
) -> Backend:
    """The layout of all sLSTM cells.

    Kernel and bias of a state dict are in one layout, and the shape of the kernel tells which. But a kernel that was
    transposed by hand to fit the other backend leaves a bias in the wrong order behind, which nothing shows. So the
    shape is believed only where the config names the same backend, or the order of the biases makes no difference.

    Raises:
        WeightsError: where it cannot be told.
    """
    if asked is not None:
        if asked not in ("vanilla", "cuda"):
            raise WeightsError(f"the recurrent layout is {asked!r}, but must be 'vanilla' or 'cuda'")
        return asked
    told: dict[Backend, list[int]] = {"vanilla": [], "cuda": []}
    alike = True
    for i, kind in enumerate(config.block_kinds):
        prefix = f"xlstm_block_stack.blocks.{i}."
        kernel, bias = (tensors.get(f"{prefix}xlstm.slstm_cell.{name}") for name in (_KERNEL, _BIAS))
        if kind != "slstm" or kernel is None or bias is None:
            continue
        kernel_shape, bias_shape = tuple(np.shape(kernel)), tuple(np.shape(bias))
        heads = config.slstm_block.slstm.num_heads if config.slstm_block is not None else 1
        dim = config.embedding_dim // heads
        if kernel_shape == (heads, dim, 4, dim):
            if bias_shape != (heads, 4, dim):
                raise WeightsError(
                    f"the order of {prefix}xlstm.slstm_cell.{_BIAS} {bias_shape} cannot be told, because {_KERNEL} "
                    f"{kernel_shape} is not as a state dict holds it: say --recurrent-layout cuda if the order is "
                    "(head, gate, feature)"
                )
            told["cuda"].append(i)
            continue
        for layout, shape in (("vanilla", (heads, 4 * dim, dim)), ("cuda", (heads, dim, 4 * dim))):
            if kernel_shape == shape:
                told[layout].append(i)  # type: ignore[index]
        if bias_shape == (4 * heads * dim,):
            values, ours = np.asarray(bias), (4, heads, dim)
            orders = [_RECURRENT[_BIAS][layout, 1].to_ours(values, ours) for layout in told]
            alike = alike and np.array_equal(orders[0], orders[1])
    if told["vanilla"] and told["cuda"]:
        raise WeightsError(
            f"the recurrent kernels of the blocks {told['vanilla']} have the layout 'vanilla', those of the blocks "
            f"{told['cuda']} the layout 'cuda', so that the order of the biases, which have one shape in both, cannot "
            "be told: save the state dict of one model, whose cells all have one backend"
        )
    seen: Backend = "vanilla" if told["vanilla"] else "cuda" if told["cuda"] else backend
    if seen != backend and not alike:
        raise WeightsError(
            f"the recurrent layout of the sLSTM blocks {told[seen]} cannot be told: their kernels have the shape of "
            f"the backend {seen!r}, but the config names the backend {backend!r}, and a bias in the wrong order would "
            f"load without an error. Say --recurrent-layout {seen} if kernels and biases are both as the backend "
            f"{seen!r} stores them"
        )
    return seen


def _is_package(document: Mapping[str, Any]) -> bool:
    return "model_type" not in document and any(key in document for key in ("mlstm_block", "slstm_block"))


def _read(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    config = config_from_xlstm_package(document, compute_dtype(tensors, options.dtype))
    if options.context_length is not None:
        config = replace(config, context_length=options.context_length)
    notes: list[str] = []
    layout = _recurrent_layout(tensors, config, options.recurrent_layout, backend_of(document))
    convert, cast = on_device(options.dtype), options.dtype is not None
    broken = notes if options.allow_nonfinite else None
    params = _params(tensors, document, config, layout, convert, floats=FLOATS, cast=cast, not_finite=broken)
    return Weights(config, params, Record(stored_head=HEAD in tensors, recurrent_layout=layout), notes)


def _write(config: xLSTMLMModelConfig, record: Record) -> Written:
    if record.weight_mode is not None:
        raise WeightsError(f"the weight mode is {record.weight_mode!r}, which the format xlstm-package does not have")
    document = xlstm_package_from_config(config, record.recurrent_layout)
    head = record.format is None or record.stored_head or not config.tie_weights
    return Written(document, list(_entries(config, backend_of(document), {}, head)), [], None, ())


FORMAT = Format(_is_package, _read, xLSTMLMModelConfig, _write, _LANDMARKS)
