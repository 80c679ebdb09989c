"""The fields of a config on the command line: `optimizer.lr=1e-3`, `--optimizer.lr 1e-3`, or `--lr 1e-3`.

A field is named by its path, or by the end of it where that is clear. Its value is what its type makes of the words:
JSON, a Python literal or a text. Sub-configs are switched off by `null` and on by an object (`model.slstm_block={}`),
after which their fields can be named too.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from xlstm_jax.config import ConfigError, discriminators, from_json, near_miss, public_fields, type_hints

T = TypeVar("T")

_ASSIGNMENT = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)


Follow = Callable[[Callable[[str], Any], set[str]], dict[str, Any]]
"""From a function that gives the value at a path, and the paths that were given, to values of other fields."""


_LENGTH = "the length of a training is --steps, each of --batch_size rows of --context_length tokens"
_RUN = "the run's folder is --run"
_ROW = "the tokens of a row are --context_length"
_WIDTH = "the width of the model is --embedding_dim"
_DEPTH = "the number of blocks is --num_blocks"
_HEADS = "the number of heads is --num_heads"
_EVAL = "the steps between two evals are --eval_every"
_SAVE = "the steps between two checkpoints are --checkpoint_every"
_LOG = "the steps between two lines of output are --log_every"
_CLIP = "the greatest norm of a gradient is --grad_clip_norm"
_DTYPE = "what the model computes in is --model.dtype, as in --model.dtype bfloat16"
_DEVICE = "JAX takes the accelerator that is there; JAX_PLATFORMS=cpu in the environment is without"
_RESUME = "a run goes on where it was by itself: `xlstm train RUN`"
ALIASES = {
    "learning_rate": "the learning rate at its peak is --lr",
    "max_lr": "the learning rate at its peak is --lr",
    "min_lr": "the learning rate at the end is --end_lr_factor times --lr",
    "lr_scheduler_type": "how the learning rate falls is --schedule",
    "beta1": "both betas are --betas, as in --betas 0.9 0.95",
    "beta2": "both betas are --betas, as in --betas 0.9 0.95",
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs"), _LENGTH),
    **dict.fromkeys(("max_steps", "max_iters", "num_steps", "total_steps"), "the length of a training is --steps"),
    **dict.fromkeys(("output_dir", "out_dir", "output", "out", "run_name"), _RUN),
    **dict.fromkeys(("max_grad_norm", "grad_clip", "clip_grad_norm", "gradient_clip_val"), _CLIP),
    "gradient_accumulation_steps": "the parts of a batch are --accumulate",
    "per_device_train_batch_size": "the rows of a step are --batch_size",
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), _WIDTH),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers"), _DEPTH),
    **dict.fromkeys(("n_head", "n_heads", "num_attention_heads"), _HEADS),
    **dict.fromkeys(("block_size", "max_seq_len", "max_length", "seq_length", "sequence_length"), _ROW),
    **dict.fromkeys(("eval_steps", "eval_interval"), _EVAL),
    **dict.fromkeys(("save_steps", "save_interval", "save_every"), _SAVE),
    **dict.fromkeys(("logging_steps", "log_interval"), _LOG),
    **dict.fromkeys(("bf16", "fp16", "precision", "mixed_precision"), _DTYPE),
    **dict.fromkeys(("device", "devices", "accelerator", "gpus"), _DEVICE),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "init_from"), _RESUME),
    **dict.fromkeys(("dataset", "data_dir", "dataset_name"), "the text to learn from is --sources"),
}
"""Names that other trainers have for fields of ours, and what to write instead."""


def apply_options(config: T, words: Sequence[str], follow: Follow | None = None) -> T:
    """A copy of a config with the given fields changed, one after the other.

    Args:
        config: a dataclass; its values are the defaults.
        words: any of `PATH=VALUE`, `--PATH VALUE`, `--PATH=VALUE` and `--set PATH=VALUE`.
        follow: what follows from them for fields that were not given.

    Raises:
        ConfigError: for a field that is not there (with the near miss) or a value that does not fit.
    """
    tree, rest, given = _Tree.of(config), list(words), set()
    while rest:
        path, value = _next_field(tree, rest)
        tree.set(path, value)
        given.add(path)
    if follow is not None:
        for path, value in follow(tree.get, given).items():
            holder, name = tree.holder(path)
            holder.values[name] = value
    # Only now, so that fields may be changed that fit together in the end alone.
    return tree.build()


def named_fields(config: Any, words: Sequence[str]) -> set[str]:
    """The paths of the fields that words for `apply_options` change."""
    tree, rest, paths = _Tree.of(config), list(words), set()
    while rest:
        path, given = _next_field(tree, rest)
        tree.set(path, given)
        paths.add(path)
    return paths


def field_paths(config: Any) -> list[str]:
    """The dotted paths of all fields that `apply_options` knows, sub-configs before their fields."""
    return list(_Tree.of(config).fields())


def _next_field(tree: _Tree, rest: list[str]) -> tuple[str, list[str]]:
    """Take the next field off the words: its path and the words of its value."""
    word = rest.pop(0)
    if word == "--set" and not rest:
        raise ConfigError("--set needs a value after it, PATH=JSON")
    if word == "--set" or word.startswith("--set="):
        word = rest.pop(0) if word == "--set" else word.removeprefix("--set=")
        if not _ASSIGNMENT.fullmatch(word):
            raise ConfigError(f"--set takes PATH=JSON, but got {word!r}; for example training.steps=100")
    if assigned := _ASSIGNMENT.fullmatch(word.removeprefix("--")):
        return tree.find(assigned[1]), [assigned[2]]
    if not word.startswith("--"):
        raise ConfigError(f"{word!r} names no field; give one as PATH=VALUE or --PATH VALUE, as in training.steps=100")
    path = tree.find(word.removeprefix("--"))
    given: list[str] = []
    several = any(typing.get_origin(option) in (tuple, list) for option in _options(tree.hint(path)))
    while rest and not rest[0].startswith("--") and not (given and (not several or tree.is_assignment(rest[0]))):
        given.append(rest.pop(0))
    if not given:
        raise ConfigError(f"--{path} needs a value after it")
    return path, given


@dataclass
class _Tree:
    """A dataclass to be and its values, of which those that are dataclasses, are trees too.

    It is not checked before it is built, since its values may fit together only when all of them have been set.
    """

    kind: Any
    values: dict[str, Any]

    @classmethod
    def of(cls, value: Any) -> Any:
        """The tree of a dataclass; a copy of any other value."""
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return copy.deepcopy(value)
        return cls(type(value), {f.name: cls.of(getattr(value, f.name)) for f in public_fields(value)})

    def build(self) -> Any:
        """The dataclass."""
        return self.kind(**{n: v.build() if isinstance(v, _Tree) else v for n, v in self.values.items()})

    def fields(self, prefix: str = "") -> Iterator[str]:
        """The dotted paths of all fields."""
        for name, value in self.values.items():
            yield f"{prefix}{name}"
            if isinstance(value, _Tree):
                yield from value.fields(f"{prefix}{name}.")

    def holder(self, path: str) -> tuple[Any, str]:
        """What holds the field at a path (a tree or a dict), and the field's name in it."""
        *parents, name = path.split(".")
        inner: Any = self
        for parent in parents:
            inner = inner.values[parent] if isinstance(inner, _Tree) else inner[parent]
        return inner, name

    def get(self, path: str) -> Any:
        """The value at a path."""
        holder, name = self.holder(path)
        return holder.values[name] if isinstance(holder, _Tree) else holder[name]

    def hint(self, path: str) -> Any:
        """The annotation of the field at a path, without bounds."""
        holder, name = self.holder(path)
        return type_hints(holder.kind)[name] if isinstance(holder, _Tree) else Any

    def is_assignment(self, word: str) -> bool:
        """Whether a word is `PATH=VALUE` with a path of ours."""
        assigned = _ASSIGNMENT.fullmatch(word)
        with contextlib.suppress(ConfigError):
            return assigned is not None and bool(self.find(assigned[1]))
        return False

    def find(self, name: str) -> str:
        """The whole path of the field that is meant: one of that path, or the least deep whose path ends so.

        Raises:
            ConfigError: for a name that no field has, or that several have, equally deep.
        """
        name, paths = name.replace("-", "_"), list(self.fields())
        if name in paths:
            return name
        if found := [path for path in paths if path.endswith(f".{name}")]:
            depth = min(path.count(".") for path in found)
            nearest = [path for path in found if path.count(".") == depth]
            if len(nearest) > 1:
                meant = " or ".join(f"--{path}" for path in nearest)
                raise ConfigError(f"--{name} could mean {meant}; give the whole path")
            return nearest[0]
        words = name.split(".")
        for end in range(len(words) - 1, 0, -1):
            if (outer := _silently(self.find, ".".join(words[:end]))) is None:
                continue
            holder, field = self.holder(outer)
            inner = holder.values[field] if isinstance(holder, _Tree) else holder.get(field)
            if isinstance(inner, dict) and end == len(words) - 1:
                return f"{outer}.{words[-1]}"
            if inner is None and any(map(dataclasses.is_dataclass, _options(self.hint(outer)))):
                raise ConfigError(f"{outer} is off (null), so there is no {name}; {outer}={{}} switches it on")
        alias = ALIASES.get(words[-1])
        hint = f"; {alias}" if alias else f"{_nearest(name, paths)}; `--help` lists them"
        raise ConfigError(f"there is no field {name!r}{hint}")

    def set(self, path: str, words: Sequence[str]) -> None:
        """Give the field at a path the value that words stand for.

        Raises:
            ConfigError: for a value that the field's type cannot have.
        """
        holder, name = self.holder(path)
        if not isinstance(holder, _Tree):
            holder[name] = next(_readings(words[0]))
            return
        if name == "name" and self._switch(path.rpartition(".")[0], words[0]):
            return
        holder.values[name] = _Tree.of(_read(self.hint(path), words, path))

    def _switch(self, path: str, name: str) -> bool:
        """Let the config at a path become the one of that name, if it is one of several; what both have is kept."""
        if not path:
            return False
        holder, field = self.holder(path)
        before: _Tree = holder.values[field]
        named = named_options(self.hint(path))
        if named and name not in named:
            from_json(self.hint(path), {"name": name}, path)  # which tells the names that there are
        chosen = named.get(name, before.kind)
        if chosen is before.kind:
            return False
        after, kept = _Tree.of(chosen()), type_hints(before.kind)
        for shared, hint in type_hints(chosen).items():
            if shared != "name" and shared in after.values and kept.get(shared) == hint:
                after.values[shared] = before.values[shared]
        holder.values[field] = after
        return True


def _silently(find: Any, name: str) -> str | None:
    try:
        return find(name)
    except ConfigError:
        return None


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def named_options(hint: Any) -> dict[str, Any]:
    """The dataclasses of a union that their names tell from each other, by these names; none for another hint."""
    structures = [option for option in _options(hint) if dataclasses.is_dataclass(option)]
    return {n: option for option in structures for n in discriminators(option)} if len(structures) > 1 else {}


def _readings(word: str) -> Iterator[Any]:
    """What a word can mean: JSON, a Python literal, and itself."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            yield read(word)
    yield word


def _read(hint: Any, words: Sequence[str], path: str) -> Any:
    """The value of that type that words stand for: one as a whole, or each an item of a list."""
    whole = list(_readings(words[0])) if len(words) == 1 else [[next(_readings(word)) for word in words]]
    for reading in whole:
        with contextlib.suppress(ConfigError):
            return from_json(hint, reading, path)
    for option in _options(hint):
        items = typing.get_args(option) if typing.get_origin(option) in (tuple, list) else ()
        if items and (items[1:] == (Ellipsis,) or typing.get_origin(option) is list):
            items = items[:1] * len(words)
        if items and len(items) == len(words):
            with contextlib.suppress(ConfigError):
                each = [_read(item, [word], path) for item, word in zip(items, words, strict=True)]
                return from_json(hint, each, path)
    return from_json(hint, whole[0], path)  # which tells what is wrong


def _nearest(name: str, paths: Sequence[str]) -> str:
    """The near miss by the last word, wherever that field is: `model.num_head` looks like `model.lm_head_dtype`, but
    means `num_heads`. With its path if that is near too."""
    lasts = {path.rpartition(".")[2] for path in paths}
    parent, _, last = name.rpartition(".")
    close = difflib.get_close_matches(last, lasts, n=1)
    if not close:
        return near_miss(name, paths)
    whole = [path for path in paths if parent and path.endswith(f".{close[0]}")]
    return near_miss(name, whole) or near_miss(close[0], close)
