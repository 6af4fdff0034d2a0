"""The dictionaries that an open file hands out. Keys that `smq-inspect --json` has too are called
what they are called there."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple, TypedDict


class SourceFile(TypedDict):
    """A file that the .smq file was made from, or that it embeds."""

    name: str
    length_bytes: int
    blake3: str
    """BLAKE3 of the file, 64 hexadecimal digits."""


class Metadata(TypedDict):
    """What a file says of itself."""

    format_version: str
    """Of the container, such as ``"1.0"``."""
    producer: str
    """The program that made the file, with its version."""
    parameters: Dict[str, str]
    """The settings that decided the bytes, such as ``{"scales": "e5m5", "target": "all"}``."""
    sources: List[SourceFile]
    """The checkpoint's weight files."""
    files: List[SourceFile]
    """The checkpoint's other files, embedded here: :meth:`SmqFile.embedded` reads them."""
    config: Optional[Dict[str, Any]]
    """The embedded config.json; ``None`` where the file has none."""


class SchemeInfo(TypedDict):
    """The tensors of a file that are stored alike."""

    scheme: str
    """``"raw"``, ``"int4-e5mx"``, ``"int4-f16"``, ``"int4-f32"``, ``"lut4-e5mx"``, ``"lut4-f16"``,
    ``"lut4-f32"``, ``"nf4-dq"`` or ``"fp8-e4m3"``."""
    dtype: Optional[str]
    """``"bf16"``, ``"f16"`` or ``"f32"`` for ``raw``; ``None`` otherwise."""
    scale_format: Optional[str]
    """``"e5m5"``, ``"f16"``, ``"f32"`` and so on; ``"dq8"`` for the double-quantized absmax values
    of ``nf4-dq``; ``None`` for ``raw``."""
    group_elems: Optional[int]
    """Weights that share a scale; ``None`` for ``raw``, and for ``fp8-e4m3``, where it is a row."""
    tensors: int
    elems: int
    stored_bytes: int


class FileInfo(TypedDict):
    """Sizes of a file."""

    path: str
    file_bytes: int
    tensors: int
    quantized_tensors: int
    elems: int
    quantized_elems: int
    bits_per_quantized_weight: Optional[float]
    """Codes and scales of the quantized tensors; ``None`` where none is."""
    bits_per_weight_in_file: Optional[float]
    """The whole file, over all weights."""
    has_statistics: bool
    schemes: List[SchemeInfo]


class TensorInfo(TypedDict):
    """How a tensor is stored."""

    name: str
    shape: Tuple[int, ...]
    """Row-major; a linear layer's weight is ``(out, in)``."""
    scheme: str
    """As :class:`SchemeInfo` has it."""
    dtype: Optional[str]
    """``"bf16"``, ``"f16"`` or ``"f32"`` for ``raw``; ``None`` otherwise."""
    source_dtype: str
    """Element type in the checkpoint: ``"bf16"``, ``"f16"`` or ``"f32"``."""
    scale_format: Optional[str]
    """``"e5m5"``, ``"f16"``, ``"f32"`` and so on; ``"dq8"`` for the double-quantized absmax values
    of ``nf4-dq``; ``None`` for ``raw``."""
    scale_bias: Optional[int]
    """Bias of the exponent of scales such as E5M5; ``None`` for the other formats."""
    nf4_offset: Optional[float]
    """What is added to each dequantized absmax of ``nf4-dq``; ``None`` otherwise."""
    group_elems: Optional[int]
    """Weights that share a scale: a group of a row for int4 and lut4, 64 of the flattened tensor
    for ``nf4-dq``, a row for ``fp8-e4m3``; ``None`` for ``raw``."""
    elems: int
    stored_bytes: int
    blobs: Tuple[str, ...]
    """The blobs that hold it, such as ``("nibbles", "scales")``."""


class ErrorFigures(TypedDict):
    """Errors over the groups of a tensor. A group's relative MSE is the sum of the squared errors
    of its weights over the sum of the squares of the weights."""

    mean_rel_mse: float
    p50_rel_mse: float
    p90_rel_mse: float
    p99_rel_mse: float
    p999_rel_mse: float
    max_rel_mse: float
    mean_cosine: float
    sqnr_db: float
    """Signal to quantization-noise ratio of the whole tensor; ``inf`` where there is no error."""
    squared_error: float
    squared_weight: float


class OutputError(TypedDict):
    """Squared error of a calibrated tensor's outputs on the calibration texts, over the outputs'
    squares."""

    rounded: float
    """As rounding to nearest would have it."""
    stored: float
    """As the file has it."""
    is_rounded: bool
    """Rounding to nearest is what the file has, since calibration did no better."""


class TensorStatistics(TypedDict):
    """What quantization did to a tensor, measured when the file was made."""

    groups: int
    zero_groups: int
    """Groups whose weights are all zero."""
    under_window_scales: int
    """Scales too small for their format."""
    clipped_weights: int
    stored: ErrorFigures
    """The tensor as it is stored."""
    exact: ErrorFigures
    """The same quantizer with exact f32 scales: the difference is what the scale format costs."""
    first_exponent: int
    exponent_counts: List[int]
    """Scales by exponent, ascending from ``first_exponent``."""
    block_rows: int
    row_block_mean_rel_mse: List[float]
    """Mean relative MSE of each block of ``block_rows`` rows."""
    output_error: Optional[OutputError]
    """``None`` where the tensor was not calibrated."""


class Receipt(TypedDict):
    """How far the file's model is from the unquantized one on a text, measured when it was made."""

    text: str
    blake3: str
    """BLAKE3 of the text."""
    window_tokens: int
    tokens_scored: int
    mean_kl_nats: float
    """Mean Kullback-Leibler divergence of the next token's distribution."""
    kl_stderr_nats: float
    perplexity: float
    base_perplexity: float
    """Of the unquantized model."""
    top1_agreement_percent: float
    """Tokens for which both models have the same most likely one."""


class Loaded(NamedTuple):
    """What :meth:`SmqFile.load_into` passed over; with ``strict=True`` only what the model itself
    says may be missing or left over. Named as in ``torch.nn.Module.load_state_dict``."""

    missing_keys: List[str]
    """Parameters of the model that the file does not hold, which keep their values."""
    unexpected_keys: List[str]
    """Tensors of the file that the model does not have."""
