"""The C++ core. Arrays must have the exact dtype and be C-contiguous; nothing is converted or copied silently.

Every function raises TypeError for a wrong type or dtype and ValueError for a wrong shape, layout or value. Sizes,
counts and indices are at most 2^31, and so are the extents of matrices and the products of sizes of a model.

Functions release the GIL while they work. Any number of threads may call them, also with the same objects; a
`DecodeModel` and an `Enumeration` serve one thread at a time. While a call runs, other threads must not change its
arrays, fill rows of a `PackedMatrix` that it reads or fills, or call `set_isa`, `allow_dots` or `allow_matrices`.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

MAX_PLAYERS: int
"""The most players a mask can have."""

def isa() -> str:
    """Return the instruction set in force: "portable", "avx2" or "avx512"."""

def isa_available() -> list[str]:
    """Return the instruction sets that this machine can run, lowest first."""

def set_isa(name: str) -> None:
    """Put an instruction set in force.

    At import it is LAYERCOOP_ISA, or the best of `isa_available` where that variable is unset. Raises ValueError for a
    name that is unknown or that this machine lacks.
    """

def dots() -> list[str]:
    """Return which instructions for dot products and for products of small matrices are in use.

    At the level avx512 "int8" (VNNI), "bf16", and with AMX "int8 matrices" and "bf16 matrices"; at neon "int8"
    (DotProd), "bf16" and "int8 matrices" (I8MM).
    """

def allow_dots(allowed: bool) -> None:
    """Allow the instructions of `dots` or not; they are allowed at import unless LAYERCOOP_DOTS is 0."""

def allow_matrices(allowed: bool) -> None:
    """Allow those of `dots` for matrices or not; they are allowed at import unless LAYERCOOP_MATRICES is 0."""

def num_threads() -> int:
    """Return how many threads a loop may use, the caller's included."""

def borrow_threads(lender: int) -> None:
    """Run loops from now on by the function at an address, of the form of OpenMP's `GOMP_parallel`; 0: by own threads.

    A forked child is back on its own threads.
    """

def set_num_threads(count: int) -> None:
    """Set how many threads a loop may use, 1 to 1024.

    At import it is LAYERCOOP_THREADS, or the number of processors that this process may use.
    """

def pack_masks(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Pack bool[M, n] to uint64[M, W], W = ceil(n / 64).

    Bit i % 64 (least significant first) of word i // 64 is player i; bits past the last player are 0.
    """

def unpack_masks(packed: npt.NDArray[np.uint64], n_players: int) -> npt.NDArray[np.bool_]:
    """Unpack uint64[M, W] to bool[M, n_players]; raises ValueError for a bit past the last player."""

def popcounts(packed: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Count the kept players of each row of uint64[M, W]: int32[M]."""

def trie_counts(packed: npt.NDArray[np.uint64], n_players: int) -> tuple[int, int, int, int]:
    """Return the counts naive, skip, plan and n_unique that `Plan` has, without computing a schedule."""

class Plan:
    """The distinct masks of uint64[M, W] and the schedule that evaluates them with at most `max_states` stored states.

    The arrays are read-only views of memory that the plan owns. `layercoop_fast.masked.plan` says what they mean.
    """

    def __init__(self, packed: npt.NDArray[np.uint64], n_players: int, max_states: int) -> None: ...
    @property
    def n_masks(self) -> int: ...
    @property
    def n_players(self) -> int: ...
    @property
    def n_unique(self) -> int: ...
    @property
    def naive(self) -> int: ...
    @property
    def skip(self) -> int: ...
    @property
    def plan(self) -> int: ...
    @property
    def scheduled(self) -> int: ...
    @property
    def max_states(self) -> int: ...
    @property
    def peak_states(self) -> int: ...
    @property
    def states_without_recompute(self) -> int: ...
    @property
    def unique_rows(self) -> npt.NDArray[np.int64]: ...
    @property
    def inverse(self) -> npt.NDArray[np.int64]: ...
    @property
    def step_player(self) -> npt.NDArray[np.int32]: ...
    @property
    def op_offsets(self) -> npt.NDArray[np.int64]: ...
    @property
    def op_src(self) -> npt.NDArray[np.int32]: ...
    @property
    def op_dst(self) -> npt.NDArray[np.int32]: ...
    @property
    def emit_offsets(self) -> npt.NDArray[np.int64]: ...
    @property
    def emit_mask(self) -> npt.NDArray[np.int64]: ...
    @property
    def emit_slot(self) -> npt.NDArray[np.int32]: ...

# The parts of a llama-shaped block that are not matrix products; `layercoop_fast.kernels` holds their oracles. Arrays
# are float32, or uint16 (the bits of bfloat16); those of one call are of one type. `out`, `sum` and the running rows
# are written; `out` and `sum` may be an input of the same shape.

_Numbers = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

def rms_norm(
    x: _Numbers,
    weight: _Numbers | None,
    eps: float,
    out: _Numbers | None,
    delta: _Numbers | None = None,
    sum: _Numbers | None = None,
    after: _Numbers | None = None,
    after_eps: float = 0.0,
    factor: float = 1.0,
    gemma: bool = False,
) -> None:
    """Root-mean-square norm of each row: x [R, H], weight [H] → out [R, H].

    With delta [R, H], x + factor * after(delta) is written to `sum` [R, H] and normed instead of x; `after` [H] is the
    weight of a norm, and without one delta is taken as it is. Without weight and out only the sum is computed. In
    Gemma's form norms multiply by 1 + weight.
    """

def rotary(
    x: _Numbers,
    cos: _Numbers,
    sin: _Numbers,
    query_heads: int,
    key_heads: int,
    query_norm: _Numbers | None = None,
    key_norm: _Numbers | None = None,
    eps: float = 0.0,
    gemma: bool = False,
    joint_norms: bool = False,
) -> None:
    """Rotate the first query_heads + key_heads groups of D columns of x [R, C] in place; cos and sin are [T, D].

    Row r is at position r % T. With norm weights [D] each head of queries or keys is normed first; with `joint_norms`
    the weights are [query_heads * D] and [key_heads * D], and all heads of queries or keys are normed together. cos and
    sin may be float32 where x is bfloat16.
    """

def rms_norm_slopes(
    x: _Numbers,
    weight: _Numbers,
    eps: float,
    slope: _Numbers,
    factors: npt.NDArray[np.float32],
    out: _Numbers,
    of_weight: _Numbers,
    base: _Numbers | None = None,
) -> None:
    """Gradients of the plain norm for a slope [R, H] of its result: of x [R, H] → out [R, H], of weight → of_weight.

    `base` [R, H] is added to `out`; `factors` [R] is written too, 1 / rms of each row.
    """

def swiglu_slopes(gate_up: _Numbers, slope: _Numbers, out: _Numbers) -> None:
    """The gradient of `swiglu` for a slope [R, I] of its result: gate_up [R, 2I] → out [R, 2I]."""

def causal_attention_slopes(
    slope: _Numbers,
    qkv: _Numbers,
    mixed: _Numbers,
    tokens: int,
    heads: int,
    kv_heads: int,
    scale: float,
    out: _Numbers,
) -> None:
    """The gradient of `causal_attention` for all tokens: qkv [W·T, (heads + 2·kv_heads)·D] → out of the same shape.

    `slope` [W·T, heads·D] is that of its result `mixed` [W·T, heads·D].
    """

def adamw(
    gradient: _Numbers,
    value: npt.NDArray[np.float32],
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    steps: int,
    factor: float,
    weight: _Numbers | None = None,
) -> None:
    """Step number `steps`, from 1, of AdamW without decay for factor · gradient [N]: value and moments [N] in place.

    The value is written to `weight` [N] too, in the gradient's type.
    """

def sum_of_squares(x: _Numbers) -> float:
    """The sum of the squares of x [N]: of 4096 numbers in fp32, of these sums in float64."""

def divergence(
    logits: _Numbers,
    teacher: _Numbers,
    values: npt.NDArray[np.float32],
    scale: float = 1.0,
    cap: float = 0.0,
    teacher_scale: float = 1.0,
    teacher_cap: float = 0.0,
) -> None:
    """KL(softmax(t) ‖ softmax(z)) of each row → values [R]; its slopes take the place of the logits [R, V].

    z = cap * tanh(scale * logit / cap), or scale * logit where cap is 0, and t likewise from `teacher` [R, V].
    """

def named_divergence(
    logits: _Numbers,
    tokens: npt.NDArray[np.int64],
    log_probs: npt.NDArray[np.float32],
    rest: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    scale: float = 1.0,
    cap: float = 0.0,
) -> None:
    """The same for a teacher known by K different tokens of each row, and one event for all others.

    tokens, log_probs: [R, K]; rest: [R], the teacher's probability of all other tokens.
    """

def swiglu(gate_up: _Numbers, out: _Numbers) -> None:
    """Multiply silu(gate) by up: gate_up [R, 2I], each row gate first, then up → out [R, I]."""

def geglu(gate_up: _Numbers, out: _Numbers) -> None:
    """Multiply gelu(gate), in the tanh form, by up: gate_up [R, 2I], a row's gate first → out [R, I]."""

def causal_attention(
    qkv: _Numbers,
    tokens: int,
    heads: int,
    kv_heads: int,
    scale: float,
    asked: npt.NDArray[np.int64],
    out: _Numbers,
    positions: npt.NDArray[np.int64] | None = None,
    sliding_window: int = 0,
    cap: float = 0.0,
) -> None:
    """Attend causally inside each window of `tokens` rows, for the queries at its tokens `asked` [S], ascending.

    qkv [W·T, (heads + 2·kv_heads)·D] → out [W·S, heads·D]. With a sliding window of n > 0 a token sees itself and the
    n - 1 before it; with a cap > 0 a score z becomes cap * tanh(z / cap).

    With `positions` [P], P a multiple of `tokens`, windows are trees of texts, depth first, and row r is at
    positions[r % P]: it sees itself and, at each position below its own, the latest earlier row at that position.
    """

def running_loss(
    logits: _Numbers,
    targets: npt.NDArray[np.int64],
    first_token: int,
    running: npt.NDArray[np.float32],
    scale: float = 1.0,
    cap: float = 0.0,
    teacher: _Numbers | None = None,
    teacher_running: npt.NDArray[np.float32] | None = None,
) -> None:
    """Add the logits [R, n] of tokens first_token .. first_token + n to each row's `running` [R, 3].

    A row is (largest, sum of exp(z − largest), z of the target) with z = cap·tanh(scale·logit / cap), or scale·logit
    where cap is 0; it starts as (lowest finite float, 0, 0). With a teacher's logits [R, n], the third number of its
    row in `teacher_running` [R, 3] is Σ exp(z_teacher − largest)·(z_teacher − z).
    """

MAX_ENUMERATED: int
"""The most players that `Enumeration` takes."""

class _Networks(Protocol):
    """What is read of an ensemble: see `layercoop_fast.kernels.networks.Networks`."""

    @property
    def hidden_weight(self) -> npt.NDArray[np.float32]: ...
    @property
    def hidden_bias(self) -> npt.NDArray[np.float32]: ...
    @property
    def output_weight(self) -> npt.NDArray[np.float32]: ...
    @property
    def output_bias(self) -> npt.NDArray[np.float32]: ...
    @property
    def activation(self) -> str: ...
    @property
    def output(self) -> str: ...

def predict_logits(networks: _Networks, packed: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Return the logits float32[M, E] of masks uint64[M, W]: each network before its output function."""

def flip_logits(
    networks: _Networks, packed: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the logits float32[M, E] of masks uint64[M, W], and float32[M, E, n] with player i of the mask flipped."""

def marginals(
    networks: _Networks, packed: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean float64[n] of f(with i) - f(without i) over masks uint64[M, W], M >= 2, and its standard error.

    f is the mean value of the networks. The result does not depend on the number of threads.
    """

class Enumeration:
    """Sums over all masks of n <= MAX_ENUMERATED players, computed in `n_tasks` steps whose results are added in order.

    Sums are of f(m) - shifts[size of m], f the mean value of the networks; `shifts` float64[n + 1] should be near the
    mean value of each size. Sums do not depend on the number of threads nor on how many steps a `run` takes. The `top`
    best masks of each size are kept; with `costs` float64[n], so is the best mask whose costs sum to at most `budget`.
    """

    def __init__(
        self,
        networks: _Networks,
        shifts: npt.NDArray[np.float64],
        *,
        pairs: bool = False,
        top: int = 0,
        costs: npt.NDArray[np.float64] | None = None,
        budget: float = 0.0,
    ) -> None: ...
    @property
    def n_tasks(self) -> int: ...
    @property
    def n_done(self) -> int: ...
    def run(self, count: int) -> None:
        """Compute the next `count` steps, or as many as are left."""
    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Masks of each size seen so far, int64[n + 1]."""
    @property
    def sizes(self) -> npt.NDArray[np.float64]:
        """Sums by size, float64[n + 1]."""
    @property
    def squares(self) -> npt.NDArray[np.float64]:
        """Sums of squares by size, float64[n + 1]."""
    @property
    def players(self) -> npt.NDArray[np.float64]:
        """Sums over the masks with player i by size, float64[n, n + 1]."""
    @property
    def pairs(self) -> npt.NDArray[np.float64] | None:
        """Sums over the masks with players i < j by size, float64[n, n, n + 1]; None without `pairs=True`."""
    def best(self, size: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        """Return the best masks of a size (bit i = player i), best first, and their sums of logits."""
    @property
    def affordable(self) -> tuple[int, float] | None:
        """The best mask within the budget and its sum of logits; None if no mask seen is within it."""

class PackedMatrix:
    """Weights [rows, columns] of a linear map, packed for products with a few rows of inputs; zero until filled.

    `format` is "fp32", "bf16", "int8" or "int4" (`layercoop_fast.kernels.quantise` defines the last two). Groups have
    32 columns, the last one perhaps fewer; G is their number. Scales and mins are the bits of fp16 numbers, uint16.
    """

    def __init__(self, format: str, rows: int, columns: int) -> None:
        """Make a matrix of 0 to 2^31 rows and columns; raises MemoryError where memory is short."""
    @property
    def format(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """The bytes that a product reads, including the padding to whole tiles and groups."""
    def fill(self, first: int, weights: npt.NDArray[np.float32], origin: str) -> None:
        """Pack weights float32[n, columns] into the rows from `first` on; int8 and int4 quantise them.

        `origin` is the format that they were last rounded to: "fp32", "bf16" or "fp16".
        """
    def fill_int8(self, first: int, q: npt.NDArray[np.int8], scales: npt.NDArray[np.uint16]) -> None:
        """Pack quantised rows from `first` on: q int8[n, columns] in -127..127, scales uint16[n, G]."""
    def fill_int4(
        self, first: int, q: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint16], mins: npt.NDArray[np.uint16]
    ) -> None:
        """Pack quantised rows from `first` on: q uint8[n, columns] in 0..15, scales and mins uint16[n, G]."""
    def unpack(self, first: int, out: npt.NDArray[np.float32]) -> None:
        """Write the rows from `first` on to float32[n, columns]."""
    def multiply(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """Multiply the weights with each row: x float32[R, columns] → out float32[R, rows]."""

def linear_bf16(
    x: npt.NDArray[np.uint16],
    weight: npt.NDArray[np.uint16],
    bias: npt.NDArray[np.uint16] | None,
    out: npt.NDArray[np.uint16],
) -> None:
    """Multiply many rows x [R, K] with weights [N, K] as models hold them, and add bias [N]: out [R, N].

    All are bits of bf16, K is even. Sums are in fp32, in order, and rounded once.
    """

def quantise_int8(
    weights: npt.NDArray[np.float32], origin: str, q: npt.NDArray[np.int8], scales: npt.NDArray[np.uint16]
) -> None:
    """Quantise weights float32[n, K] → q int8[n, K], scales uint16[n, G].

    `layercoop_fast.kernels.quantise` defines the result.
    """

def quantise_int4(
    weights: npt.NDArray[np.float32],
    origin: str,
    q: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint16],
    mins: npt.NDArray[np.uint16],
) -> None:
    """Quantise weights float32[n, K] → q uint8[n, K], scales and mins uint16[n, G].

    `layercoop_fast.kernels.quantise` defines the result.
    """

# Models that decode in C++; `layercoop_fast.runtime.native` makes and calls them.

KV_PAGE: int
"""The number of tokens in a page of keys and values."""

_Norm = tuple[npt.NDArray[np.float32], float]  # weight, epsilon

class DecodeModel:
    """A llama-shaped model over packed weights: set its rotary tables, then add its blocks in order, then its ends."""

    def __init__(
        self,
        *,
        hidden: int,
        heads: int,
        kv_heads: int,
        width: int,
        inner: int,
        scale: float,
        score_cap: float = 0.0,
        activation: str,
    ) -> None:
        """Make a model without blocks.

        `width` is that of a head, `inner` that of the MLP. Scores are scaled, then softly capped unless `score_cap` is
        0. `activation` is "silu" or "gelu_tanh".
        """

    @property
    def n_blocks(self) -> int: ...
    def set_rotaries(self, tables: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> None:
        """Set the rotary tables, each cosines and sines [P, width / 2] of all P positions that the model can have."""

    def add_block(
        self,
        *,
        attention_norm: _Norm | None = None,
        qkv: PackedMatrix | None = None,
        qkv_bias: npt.NDArray[np.float32] | None = None,
        query_norm: _Norm | None = None,
        key_norm: _Norm | None = None,
        output: PackedMatrix | None = None,
        output_bias: npt.NDArray[np.float32] | None = None,
        after_attention: _Norm | None = None,
        mlp_norm: _Norm | None = None,
        gate_up: PackedMatrix | None = None,
        gate_up_bias: npt.NDArray[np.float32] | None = None,
        down: PackedMatrix | None = None,
        down_bias: npt.NDArray[np.float32] | None = None,
        after_mlp: _Norm | None = None,
        rotary: int = -1,
        window: int = 0,
    ) -> None:
        """Add a block. A half whose matrices are None is not loaded.

        In gate_up 16 rows of gate and 16 rows of up alternate, padded to a multiple of 16 each. `window` is the number
        of last tokens that a token sees, itself included; 0: all. `rotary` is an index into the tables; -1: none.
        """

    def set_ends(
        self,
        *,
        embedding: PackedMatrix,
        final_norm: _Norm,
        head: PackedMatrix,
        head_bias: npt.NDArray[np.float32] | None = None,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_cap: float = 0.0,
    ) -> None:
        """Set the embedding and the head [V, hidden], the final norm, and the scale and soft cap of the logits."""

    def kv_page_bytes(self, kv_format: str) -> int:
        """Return the bytes of a page of keys and values in the format "fp32", "bf16", "fp16" or "int8"."""

    def run(
        self,
        memory: npt.NDArray[np.uint8],
        kv_format: str,
        *,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        sequence: npt.NDArray[np.int32],
        parent: npt.NDArray[np.int32],
        fork: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint8],
        tables: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.int32],
        logits: npt.NDArray[np.float32] | None = None,
        best: npt.NDArray[np.int64] | None = None,
        top: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None = None,
    ) -> None:
        """Compute rows (`layercoop_fast.runtime.executor.Rows`) whose keys and values are in pages of `memory`.

        Writes logits [K, V]; best [K], the most likely token, the lowest among equals; top, the largest logits and
        their tokens, both [K, n] with n from 1 to V. Calls on one model run one at a time.
        """
