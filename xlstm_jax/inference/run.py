"""A trained run, loaded: what `xlstm_jax.load` returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from xlstm_jax.config import ConfigError, from_json
from xlstm_jax.data.tokenizers import Tokenizer, as_bytes, load_tokenizer
from xlstm_jax.distributed.mesh import with_mesh
from xlstm_jax.distributed.placement import ONE_DEVICE, Placement, placement_of
from xlstm_jax.inference.generate import Generator, Prompt, checked_prompts
from xlstm_jax.inference.sampling import Sampling
from xlstm_jax.models.language_model import LanguageModel, LanguageModelConfig, build_model, param_shapes
from xlstm_jax.models.parameters import describe
from xlstm_jax.runs.errors import DamagedRunError
from xlstm_jax.runs.folder import RunFolder, TokenizerInfo
from xlstm_jax.scoring.documents import score_document
from xlstm_jax.scoring.score import Score, Scorer

NOT_THE_MODEL = ("data", "optimizer", "training")
"""Parts of a run's config that say nothing about what its model computes."""


class Run:
    """A model with the parameters of one checkpoint, and its tokenizer.

    Attributes:
        path: the run's folder.
        step: the checkpoint's step.
        model: the model; `model.apply({"params": run.params}, tokens)` gives logits.
        params: its parameters.
        config: the model's config.
        tokenizer: the one it was trained with.
        generator: what makes texts.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        model: LanguageModel,
        params: Any,
        tokenizer: Tokenizer | None,
        info: TokenizerInfo | None = None,
    ) -> None:
        self.path, self.step = path, step
        self.model, self.params = model, params
        self._tokenizer, self._info = tokenizer, info or TokenizerInfo()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, step={self.step}, parameters={self.model.param_count:,})"

    @property
    def config(self) -> LanguageModelConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise DamagedRunError(
                f"{self.path} has no tokenizer, because none came with its weights, so it takes tokens but no text: "
                "convert them again with --tokenizer PATH"
            )
        return self._tokenizer

    @functools.cached_property
    def generator(self) -> Generator:
        return Generator(self.model, self.params, self.tokenizer, self._info.bos_id, self._info.stop_ids)

    @overload
    def generate(self, prompt: Prompt = ..., settings: Sampling | None = ..., **more: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], settings: Sampling | None = ..., **more: Any) -> list[str]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = "",
        settings: Sampling | None = None,
        *,
        streams: Sequence[int] | None = None,
        **fields: Any,
    ) -> str | list[str]:
        """Continue a prompt, or several side by side.

        Args:
            prompt: a text (or its bytes), or a list of them; the result does not repeat it.
            settings: how; or its fields by name, as `max_tokens=64, temperature=0.7, seed=1`. See `Sampling`.
            streams: see `Generator.stream`.

        Raises:
            ConfigError: for a setting that there is not or that is out of its range, or a prompt that is no text.
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        several = isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes))
        prompts = checked_prompts(prompt if several else [prompt])
        texts = self.generator.generate(prompts, _settings(settings, fields), streams)
        return texts if several else texts[0]

    def stream(self, prompt: Prompt = "", settings: Sampling | None = None, **fields: Any) -> Iterator[str]:
        """The continuation of one prompt as it is made; arguments as in `generate`."""
        deltas = self.generator.stream(checked_prompts([prompt]), _settings(settings, fields))
        return (delta.text for delta in deltas if delta.text)

    def score(self, text: Prompt) -> Score:
        """How well the model predicts a text, as a document of its own: nats, perplexity, bits per byte.

        Raises:
            NotFiniteError: if the model's logits are NaN or infinite.
        """
        (text,) = checked_prompts([text])
        eod = self.tokenizer.eod_id
        bos = eod if self.bos_id is None else self.bos_id
        document = np.concatenate([[bos], self.tokenizer.encode_array(text), [eod]]).astype(np.int32)
        return score_document(self.scorer, self.params, document, len(as_bytes(text)))

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text; None: the EOD of the tokenizer."""
        return self._info.bos_id

    @functools.cached_property
    def scorer(self) -> Scorer:
        """What scores texts with `params`."""
        return Scorer(self.model)


def load(
    path: str | Path, step: int | None = None, say: Callable[[str], None] | None = None, *, mesh: str | None = None
) -> Run:
    """The model of a run folder, also while it trains.

    Args:
        path: the run's folder.
        step: of the checkpoint to read; the newest good one if None.
        say: gets a sentence for each damaged checkpoint that is passed over.
        mesh: how many devices it is laid out over, as in "fsdp=4,tp=2"; one device if None, however it was trained.

    Raises:
        ConfigError: for a mesh that there are no devices for.
        RunNotFoundError: if there is no such run.
        DamagedRunError: if its config or tokenizer cannot be used.
        CheckpointError: if there is no (good) checkpoint, or it does not fit the config.
    """
    folder = RunFolder.open(path)
    config = model_config(folder)
    tokenizer, info = read_tokenizer(folder, config), folder.read_tokenizer_info()
    if info.bos_id is not None and info.bos_id >= config.vocab_size:
        raise DamagedRunError(
            f"{folder.tokenizer_info_path} cannot be used: bos_id is {info.bos_id}, but the model knows "
            f"{config.vocab_size} tokens only"
        )
    placement = ONE_DEVICE if mesh is None else placement_of(with_mesh(config.parallel, mesh))
    found, params = read_params(folder, config, step, say, placement)
    return Run(folder.path, found, build_model(config), params, tokenizer, info)


def read_params(
    folder: RunFolder,
    config: LanguageModelConfig,
    step: int | None = None,
    say: Callable[[str], None] | None = None,
    placement: Placement = ONE_DEVICE,
) -> tuple[int, Any]:
    """(the checkpoint's step, its parameters in the dtypes that they were saved in), for the run's `model_config`.

    Raises:
        as `load`.
    """
    shapes = param_shapes(config)
    shapes = placement.shapes(shapes, describe(shapes, config.block_kinds), shapes)
    found, params, extra = folder.read_params(step, shapes, say, any_float=True)
    folder.check_config(found, extra, NOT_THE_MODEL)
    return found, params


def _settings(settings: Sampling | None, fields: dict[str, Any]) -> Sampling:
    if settings is None:
        return Sampling.of(**fields)
    if not isinstance(settings, Sampling):
        raise ConfigError(f"settings is {settings!r}, but must be a Sampling (or give its fields by name)")
    if fields:
        raise ConfigError(f"settings are given, so {', '.join(fields)} cannot be given beside them")
    return settings


def model_config(folder: RunFolder) -> LanguageModelConfig:
    """The model's config.

    Raises:
        DamagedRunError: if there is none, or it cannot be used.
    """
    data = folder.read_config_json()
    if "model" not in data:
        raise DamagedRunError(f"{folder.config_path} cannot be used: it lacks 'model'")
    try:
        return from_json(LanguageModelConfig, data["model"], "model")  # type: ignore[arg-type]
    except ConfigError as error:
        raise DamagedRunError(f"{folder.config_path} cannot be used: {error}") from error


def read_tokenizer(folder: RunFolder, config: LanguageModelConfig) -> Tokenizer | None:
    """The run's tokenizer; None where none came with weights from elsewhere.

    Raises:
        DamagedRunError, TokenizerError: if it is missing, damaged or too large for the model.
    """
    if not folder.tokenizer_dir.exists():
        if folder.huggingface_dir.is_dir():
            return None
        raise DamagedRunError(f"{folder} has no tokenizer: {folder.tokenizer_dir} is missing")
    tokenizer = load_tokenizer(folder.tokenizer_dir)
    if tokenizer.vocab_size > config.vocab_size:
        raise DamagedRunError(
            f"the tokenizer in {folder.tokenizer_dir} has {tokenizer.vocab_size} tokens, but the model of {folder} "
            f"knows {config.vocab_size} only"
        )
    return tokenizer
