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
from typing import Any, NamedTuple

import jax
import numpy as np

from xlstm_jax.hub.errors import WeightsError, refuse
from xlstm_jax.hub.xlstm_package_config import Backend, backend_of, config_from_xlstm_package, parse_package_config
from xlstm_jax.models.layouts import block_shapes
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

Shape = tuple[int, ...]

_DTYPES = ("float64", "float32", "float16", "bfloat16")


class _Kind(NamedTuple):
    """How one tensor of the package holds one parameter of ours, or several."""

    shape: Callable[..., Shape]
    """Shapes of ours -> shape of the tensor."""
    read: Callable[..., list[np.ndarray]]
    """(tensor, *shapes of ours) -> our parameters."""
    write: Callable[..., np.ndarray]
    """Our parameters -> tensor."""


def _same(shape: Shape) -> Shape:
    return shape


def _one_plus(x: np.ndarray, shape: Shape) -> list[np.ndarray]:
    # In float32 at least: next to one, a narrower dtype has no room for the difference.
    wide = x.astype(np.promote_types(x.dtype, np.float32)) if x.dtype.itemsize < 4 else x
    return [(np.ones((), wide.dtype) + wide).reshape(shape)]


_PLAIN = _Kind(_same, lambda x, _: [x], lambda x: x)
_DENSE = _Kind(lambda shape: shape[::-1], lambda x, _: [x.T], lambda x: x.T)
_NORM = _Kind(lambda shape: (int(np.prod(shape)),), _one_plus, lambda x: x.reshape(-1) - np.ones((), x.dtype))
# (features, 1, taps), the oldest tap first, as in ours.
_CONV = _Kind(lambda shape: shape[::-1], lambda x, _: [x.transpose(2, 1, 0)], lambda x: x.transpose(2, 1, 0))
_TWO_DENSE = _Kind(
    lambda one, two: (one[1] + two[1], one[0]),
    lambda x, one, _: [x[: one[1]].T, x[one[1] :].T],
    lambda one, two: np.concatenate([one.T, two.T]),
)
_TWO_BIASES = _Kind(
    lambda one, two: (one[0] + two[0],),
    lambda x, one, _: [x[: one[0]], x[one[0] :]],
    lambda one, two: np.concatenate([one, two]),
)
# Ours: kernels (gate, head, out, in), biases (gate, head, feature).
_RECURRENT: dict[str, dict[Backend, _Kind]] = {
    "kernel": {
        "vanilla": _Kind(
            lambda s: (s[1], s[0] * s[2], s[3]),
            lambda x, s: [x.reshape(s[1], s[0], s[2], s[3]).transpose(1, 0, 2, 3)],
            lambda x: x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1, x.shape[3]),
        ),
        "cuda": _Kind(
            lambda s: (s[1], s[3], s[0] * s[2]),
            lambda x, s: [x.reshape(s[1], s[3], s[0], s[2]).transpose(2, 0, 3, 1)],
            lambda x: x.transpose(1, 3, 0, 2).reshape(x.shape[1], x.shape[3], -1),
        ),
    },
    "bias": {
        "vanilla": _Kind(lambda s: (int(np.prod(s)),), lambda x, s: [x.reshape(s)], lambda x: x.reshape(-1)),
        "cuda": _Kind(
            lambda s: (int(np.prod(s)),),
            lambda x, s: [x.reshape(s[1], s[0], s[2]).transpose(1, 0, 2)],
            lambda x: x.transpose(1, 0, 2).reshape(-1),
        ),
    },
}
_KERNEL_NAME, _BIAS_NAME = "xlstm.slstm_cell._recurrent_kernel_", "xlstm.slstm_cell._bias_"


class _Row(NamedTuple):
    """A row of the tables: the package's name, ours, and how."""

    theirs: str
    ours: tuple[str, ...]
    kind: _Kind


def _row(theirs: str, *ours: str, kind: _Kind = _PLAIN) -> _Row:
    return _Row(theirs, ours, kind)


def _linear(theirs: str, *ours: str) -> list[_Row]:
    kernel, bias = (_DENSE, _PLAIN) if len(ours) == 1 else (_TWO_DENSE, _TWO_BIASES)
    return [
        _row(f"{theirs}.weight", *(f"{name}.kernel" for name in ours), kind=kernel),
        _row(f"{theirs}.bias", *(f"{name}.bias" for name in ours), kind=bias),
    ]


_AROUND = [
    _row("token_embedding.weight", "token_embedding.embedding"),
    _row("xlstm_block_stack.post_blocks_norm.weight", "xlstm_block_stack.post_blocks_norm.scale", kind=_NORM),
    _row("lm_head.weight", "lm_head.kernel", kind=_DENSE),
]
_BOTH = [
    _row("xlstm_norm.weight", "norm.scale", kind=_NORM),
    _row("xlstm.conv1d.conv.weight", "xlstm.conv.kernel", kind=_CONV),
    _row("xlstm.conv1d.conv.bias", "xlstm.conv.bias"),
]
_MLSTM = [
    *_BOTH,
    *_linear("xlstm.proj_up", "xlstm.proj_up_mlstm", "xlstm.proj_up_z"),
    *(_row(f"xlstm.{x}_proj.weight", f"xlstm.{x}.kernel") for x in "qkv"),
    *(_row(f"xlstm.{x}_proj.bias", f"xlstm.{x}.bias") for x in "qkv"),
    *_linear("xlstm.mlstm_cell.igate", "xlstm.cell.igate"),
    *_linear("xlstm.mlstm_cell.fgate", "xlstm.cell.fgate"),
    _row("xlstm.mlstm_cell.outnorm.weight", "xlstm.cell.out_norm.scale", kind=_NORM),
    _row("xlstm.learnable_skip", "xlstm.learnable_skip"),
    *_linear("xlstm.proj_down", "xlstm.proj_down"),
]


def _slstm_rows(layout: Backend) -> list[_Row]:
    return [
        *_BOTH,
        _row("xlstm.fgate.weight", "xlstm.i.kernel"),
        _row("xlstm.igate.weight", "xlstm.f.kernel"),
        _row("xlstm.zgate.weight", "xlstm.z.kernel"),
        _row("xlstm.ogate.weight", "xlstm.o.kernel"),
        _row(_KERNEL_NAME, "xlstm.cell.recurrent_kernel", kind=_RECURRENT["kernel"][layout]),
        _row(_BIAS_NAME, "xlstm.cell.bias", kind=_RECURRENT["bias"][layout]),
        _row("xlstm.group_norm.weight", "xlstm.group_norm.scale", kind=_NORM),
        _row("ffn_norm.weight", "ffn_norm.scale", kind=_NORM),
        *_linear("ffn.proj_up", "ffn.proj_up_gate", "ffn.proj_up"),
        *_linear("ffn.proj_down", "ffn.proj_down"),
    ]


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
    package, ours = parse_package_config(config), config_from_xlstm_package(config)
    tensors = _without_prefix(tensors)
    problems: list[str] = []
    if ours.tie_weights:
        tensors = _untied(tensors, problems)
    layout = _recurrent_layout(tensors, ours, recurrent_layout, backend_of(package))
    rows = list(_rows(ours, layout))
    # All is checked before the first value is read: those of files are read one at a time.
    for row, shapes in rows:
        wanted = row.kind.shape(*shapes)
        if row.theirs not in tensors:
            problems.append(f"missing: {row.theirs} {wanted}, which holds {' and '.join(row.ours)}")
            continue
        found, dtype = tuple(np.shape(tensors[row.theirs])), _dtype(tensors[row.theirs])
        if found not in (wanted, _external_shape(row, shapes[0])):
            problems.append(f"mis-shaped: {row.theirs} is {found}, but must be {wanted}")
        if dtype.name not in _DTYPES:
            problems.append(f"wrong dtype: {row.theirs} is {dtype}, but must be one of {', '.join(_DTYPES)}")
    known = {row.theirs for row, _ in rows}
    problems += [f"surplus: {name}, which no part of this model takes" for name in sorted(set(tensors) - known)]
    refuse("the weights do not fit the model, nothing was loaded", problems)

    params: dict[str, Any] = {}
    for row, shapes in rows:
        value = np.asarray(tensors[row.theirs]).reshape(row.kind.shape(*shapes))
        for path, part in zip(row.ours, row.kind.read(value, *shapes), strict=True):
            _put(params, path.split("."), np.ascontiguousarray(part))
    return params


def xlstm_package_from_params(
    params: Mapping[str, Any], config: xLSTMLMModelConfig, recurrent_layout: Backend = "vanilla"
) -> dict[str, np.ndarray]:
    """The state dict of the package for parameters of our model: the inverse of `params_from_xlstm_package`.

    Exact in every bit, but for scales of norms below a half: the package adds one to what it stores, which leaves them
    a multiple of 2^-24 in float32.

    Args:
        params: unrolled parameters of `xLSTMLMModel(config)`.
        config: a config such as `config_from_xlstm_package` returns.
        recurrent_layout: the backend that shall read the state dict.

    Raises:
        WeightsError: for a parameter that the package has no place for, or one that `params` lacks.
    """
    tensors: dict[str, np.ndarray] = {}
    used: set[str] = set()
    flat = {".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for row, _ in _rows(config, recurrent_layout):
        lacking = [path for path in row.ours if path not in flat]
        if lacking:
            raise WeightsError(f"the parameters lack {', '.join(lacking)}, which {row.theirs} holds")
        used.update(row.ours)
        value = row.kind.write(*(np.asarray(flat[path]) for path in row.ours))
        tensors[row.theirs] = np.ascontiguousarray(value)
    if surplus := sorted(set(flat) - used):
        raise WeightsError(f"the package xlstm has no place for {', '.join(surplus)}")
    if config.tie_weights:
        tensors["lm_head.weight"] = tensors["token_embedding.weight"]
    return tensors


def _rows(config: xLSTMLMModelConfig, layout: Backend) -> Iterator[tuple[_Row, list[Shape]]]:
    """The rows that the model has, with full names, and the shapes of our parameters in them."""
    shapes = block_shapes(config)
    for row in _AROUND:
        if row.ours[0] in shapes:
            yield row, [shapes[path] for path in row.ours]
    for i, kind in enumerate(config.block_kinds):
        for row in _slstm_rows(layout) if kind == "slstm" else _MLSTM:
            ours = tuple(f"xlstm_block_stack.blocks_{i}.{path}" for path in row.ours)
            if ours[0] in shapes:
                yield _Row(f"xlstm_block_stack.blocks.{i}.{row.theirs}", ours, row.kind), [shapes[p] for p in ours]


def _without_prefix(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in tensors:
        prefix = name.removesuffix("token_embedding.weight")
        if prefix != name and prefix and all(other.startswith(prefix) for other in tensors):
            return {other.removeprefix(prefix): value for other, value in tensors.items()}
    return tensors


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


def _dtype(tensor: Any) -> np.dtype:
    return np.dtype(tensor.dtype) if hasattr(tensor, "dtype") else np.asarray(tensor).dtype


def _external_shape(row: _Row, ours: Shape) -> Shape | None:
    """The shape of recurrent weights as the package shows them outside; flat, they have the order of "cuda"."""
    if row.kind is _RECURRENT["kernel"]["cuda"]:
        return ours[1], ours[3], ours[0], ours[2]
    if row.kind is _RECURRENT["bias"]["cuda"]:
        return ours[1], ours[0], ours[2]
    return None


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
        kernel, bias = (tensors.get(prefix + name) for name in (_KERNEL_NAME, _BIAS_NAME))
        if kind != "slstm" or kernel is None or bias is None:
            continue
        kernel_shape, bias_shape = tuple(np.shape(kernel)), tuple(np.shape(bias))
        heads = config.slstm_block.slstm.num_heads if config.slstm_block is not None else 1
        dim = config.embedding_dim // heads
        if kernel_shape == (heads, dim, 4, dim):
            if bias_shape != (heads, 4, dim):
                raise WeightsError(
                    f"the order of {prefix}{_BIAS_NAME} {bias_shape} cannot be told, because {_KERNEL_NAME} "
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
            orders = [_RECURRENT["bias"][layout].read(values, ours)[0] for layout in told]
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


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
