//! How `decode.cu` is cut for a model and a GPU.

use super::word;
use crate::cuda::book::{BOOK_BYTES, Halves};
use crate::cuda::contract::{BLOCK_SHARED_BYTES, Defines, NF4_TABLE_BYTES, attention_defines};
use crate::cuda::weights::{DeviceMatrix, Format, LARGEST_GROUP};
use crate::cuda::{family, limits, state};
use crate::error::{Error, Result};
use smq_model::ModelConfig;

/// What surrounds a product (`decode_product.cuh` says exactly).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Stores the result.
    Store,
    /// Adds it to the residual stream and prepares the next product's input.
    Residual,
    /// `silu(gate) up` of two matrices, or of the halves of one.
    Swiglu,
    /// Stores it, and the largest is the next token.
    Logits,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// bf16.
    Bf16,
    /// int4 with scales of groups.
    Int4,
    /// NF4 with doubly quantized scales.
    Nf4,
    /// E4M3.
    Fp8,
    /// Indices into a code book with scales of groups.
    Lut4,
}

impl Storage {
    fn of(m: &DeviceMatrix) -> Self {
        match m.format {
            Format::Bf16 => Self::Bf16,
            Format::Int4 { .. } => Self::Int4,
            Format::Nf4 { .. } => Self::Nf4,
            Format::Fp8 { .. } => Self::Fp8,
            Format::Lut4 { .. } => Self::Lut4,
        }
    }

    /// Bytes that a warp exchanges of its activations: a line's limbs, halves or f16
    /// (`decode_int4.cuh` and so on hold them against this).
    fn exchange_bytes(self) -> usize {
        match self {
            Self::Bf16 => 0,
            Self::Int4 | Self::Lut4 => 784,
            Self::Nf4 => 1040,
            Self::Fp8 => 256,
        }
    }

    /// Bytes of a block's tables of values: NF4's, of pairs by byte for each lane, and of absmax
    /// codes.
    fn table_bytes(self) -> usize {
        match self {
            Self::Nf4 => NF4_TABLE_BYTES,
            Self::Bf16 | Self::Int4 | Self::Fp8 | Self::Lut4 => 0,
        }
    }

    /// Whether a slot is a team's of four warps, and not all warps'.
    fn is_by_teams(self) -> bool {
        match self {
            Self::Int4 | Self::Nf4 | Self::Lut4 => true,
            Self::Bf16 | Self::Fp8 => false,
        }
    }

    /// What a guess costs where most weights are stored so, as a part of a step: measured with
    /// Phi-3.5-mini on an H200 (results/speculate).
    fn guess_cost(self) -> f64 {
        match self {
            Self::Bf16 => 0.06,
            Self::Fp8 => 0.22,
            Self::Nf4 => 0.29,
            Self::Int4 | Self::Lut4 => 0.44,
        }
    }

    /// Bytes copied for one run beside its scale codes: scales of these, or a code book.
    fn nested_bytes(self) -> usize {
        match self {
            Self::Nf4 => NESTED_BYTES,
            Self::Lut4 => BOOK_BYTES,
            Self::Bf16 | Self::Int4 | Self::Fp8 => 0,
        }
    }
}

/// One kind of product: what the kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    cols: usize,
    storage: Storage,
    /// int4: columns that share a scale.
    group: usize,
    epilogue: Epilogue,
    /// Rows of up to three matrices.
    segments: [usize; 3],
    /// Whether a code book is shifted ([`Halves`]); it is compiled in for all of a plan's kinds.
    shifted: bool,
}

/// Bytes copied for one run of NF4's scales of codes.
const NESTED_BYTES: usize = 48;
/// Warps of a block that multiply; lines of 128 bytes of 8 rows in a slot.
const WARPS: usize = 12;
/// Bytes of weights in a slot; scale codes follow.
const WEIGHT_BYTES: usize = 8 * 128 * WARPS;
/// Columns, of 8 bytes, and rows of a box of weights: half of a slot.
pub(super) const BOX: (u32, u32) = (128 * WARPS as u32 / 8, 4);
/// Warps of a block that copy, a slot each at a time: of 2, 3 and 4 the best, most of all where a
/// row takes several slots (kernels/NOTES.md). A warp has as many registers among 16 as among 14.
const PRODUCERS: usize = 4;

/// Slots of a ring: as many as fit a block's shared memory, and as many for each producer.
const MOST_SLOTS: usize = 16;

/// Of a ring of so many, slots behind which all before them have to be there before one is filled,
/// where teams of warps have slots of their own (`decode.cu` says why): as many as are on their way
/// at a time where the ring is long enough to tell them apart.
fn landed(slots: usize) -> usize {
    if slots >= 12 { PRODUCERS } else { 3 }
}

/// The macros' names for each kind.
macro_rules! kind_names {
    ($($n:literal)*) => {
        [$([
            concat!("KIND", $n, "_K"),
            concat!("KIND", $n, "_STORAGE"),
            concat!("KIND", $n, "_EPILOGUE"),
            concat!("KIND", $n, "_SEG0"),
            concat!("KIND", $n, "_SEG1"),
            concat!("KIND", $n, "_SEG2"),
        ]),*]
    };
}
const KIND_NAMES: [[&str; 6]; 9] = kind_names!(0 1 2 3 4 5 6 7 8);
/// How many kinds of product there are of each storage that has code of its own to compile.
const STORED_SO: [(&str, Storage); 4] = [
    ("INT4_KINDS", Storage::Int4),
    ("NF4_KINDS", Storage::Nf4),
    ("FP8_KINDS", Storage::Fp8),
    ("LUT4_KINDS", Storage::Lut4),
];

impl Kind {
    /// Of matrices that are stored alike and multiplied together.
    #[must_use]
    pub fn new(matrices: &[DeviceMatrix], epilogue: Epilogue) -> Self {
        let first = &matrices[0];
        let mut segments = [0; 3];
        for (to, m) in segments.iter_mut().zip(matrices) {
            *to = m.rows;
        }
        if epilogue == Epilogue::Swiglu && matrices.len() == 1 {
            segments = [first.rows / 2, first.rows / 2, 0];
        }
        Self {
            cols: first.cols,
            storage: Storage::of(first),
            group: first.group(),
            epilogue,
            segments,
            shifted: matrices.iter().any(is_shifted),
        }
    }

    /// What tells it apart.
    fn alike(self) -> Self {
        Self {
            shifted: false,
            ..self
        }
    }

    /// Most tiles of 8 rows that one of `sms` blocks has.
    fn max_tiles(&self, sms: usize) -> usize {
        (self.segments.iter().sum::<usize>() / 8).div_ceil(sms)
    }

    /// Scale codes of a row.
    #[must_use]
    pub fn groups(&self) -> usize {
        match self.storage {
            Storage::Bf16 => 0,
            Storage::Int4 | Storage::Lut4 => self.cols.div_ceil(self.group),
            Storage::Nf4 => self.cols / 64,
            Storage::Fp8 => 1,
        }
    }

    /// Bytes of a row of weights.
    pub(super) fn row_bytes(&self) -> usize {
        match self.storage {
            Storage::Bf16 => 2 * self.cols,
            Storage::Fp8 => self.cols,
            Storage::Int4 | Storage::Nf4 | Storage::Lut4 => self.cols / 2,
        }
    }

    /// Whether a row takes several slots, which are then filled by tensor maps.
    pub(super) fn is_boxed(&self) -> bool {
        self.row_bytes() > 128 * WARPS
    }

    /// Rows of each matrix, of which those behind the last are 0.
    pub(super) fn segments(&self) -> [usize; 3] {
        self.segments
    }

    /// Bytes in a slot behind its weights.
    fn code_bytes(&self, width: usize) -> usize {
        match self.storage {
            Storage::Bf16 => 0,
            Storage::Int4 | Storage::Nf4 | Storage::Fp8 | Storage::Lut4 => {
                self.runs() * (self.run_bytes(width) + self.storage.nested_bytes())
            }
        }
    }

    /// Runs of consecutive scale codes in a tile.
    fn runs(&self) -> usize {
        match self.epilogue {
            Epilogue::Swiglu => 2,
            Epilogue::Store | Epilogue::Residual | Epilogue::Logits => 1,
        }
    }

    /// Bytes of a phase's scratch that its partial sums take on one of `sms` blocks, of `rows`
    /// tokens.
    fn sum_bytes(&self, sms: usize, rows: usize) -> usize {
        let bytes = 4 * 8 * self.max_tiles(sms) * WARPS * rows;
        match self.epilogue {
            // The last product takes both phases' scratch.
            Epilogue::Logits => bytes.div_ceil(2),
            Epilogue::Store | Epilogue::Residual | Epilogue::Swiglu => bytes,
        }
    }

    /// Bytes copied for one run of scale codes of `width` bits, which begins at any bit: whole 16
    /// bytes around it, and the word after the last.
    #[must_use]
    pub(super) fn run_bytes(&self, width: usize) -> usize {
        let codes = 8 / self.runs() * self.groups();
        (codes * width / 8 + 16 + 4).next_multiple_of(16)
    }
}

/// The kernel's macros and launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every kind of product that the model has.
    pub kinds: Vec<Kind>,
    /// Macros.
    pub defines: Defines,
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

impl Plan {
    /// For the products of a model, each with its scales' macros, on `sms` multiprocessors.
    ///
    /// # Errors
    /// [`Error::Model`] for a model with too many heads or too many kinds of product, or one whose
    /// rows do not fit shared memory.
    pub fn new(c: &ModelConfig, products: &[(Kind, Defines)], sms: usize) -> Result<Self> {
        Self::of_rows(c, products, sms, 1)
    }

    /// As [`Plan::new`], for steps of `rows` tokens: the last one, and guesses at what comes.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_rows(
        c: &ModelConfig,
        products: &[(Kind, Defines)],
        sms: usize,
        rows: usize,
    ) -> Result<Self> {
        let (mut kinds, mut scales) = (Vec::new(), Vec::new());
        for (kind, format) in products {
            push_new(&mut kinds, kind.alike());
            match kind.storage {
                Storage::Int4 | Storage::Lut4 => push_new(&mut scales, format.clone()),
                Storage::Bf16 | Storage::Nf4 | Storage::Fp8 => {}
            }
        }
        limits::kinds(kinds.len(), KIND_NAMES.len())?;
        limits::heads(c.kv_heads, sms)?;
        let codes = products
            .iter()
            .map(|(k, scales)| k.code_bytes(scales[1].1 as usize));
        let codes = codes.max().unwrap_or(0);
        let exchange = kinds.iter().map(|k| k.storage.exchange_bytes());
        let exchange = exchange.max().unwrap_or(0);
        let tables = kinds.iter().map(|k| k.storage.table_bytes());
        let tables = tables.max().unwrap_or(0);
        let boxes = kinds.iter().any(Kind::is_boxed);
        // A box lies at 128 bytes.
        let slot = (WEIGHT_BYTES + codes).next_multiple_of(if boxes { 128 } else { 32 });
        let queries = c.heads / c.kv_heads;
        let batch = queries.div_ceil(queries.div_ceil(256 / c.head_dim));
        // Of several tokens each has its queries and its new key and value, which may have codes.
        let of_token = if rows > 1 { queries + 2 } else { queries + 1 };
        let attention = 4 * (rows * of_token + batch * WARPS) * c.head_dim + 8 * batch * WARPS;
        let partial = kinds
            .iter()
            .map(|k| k.sum_bytes(sms, rows))
            .chain([attention])
            .max()
            .unwrap_or(0)
            .next_multiple_of(128);
        // Two phases' scratch, and as many words for each producer.
        let beside_ring = 128 + 2 * partial + PRODUCERS * 2 * 4 * word::WORDS;
        // What is static: angles, the ring's barriers, weights of the next norm, what warps exchange,
        // tables, and some hundred bytes of others.
        let angles = 4 * rows * c.rope.rotary_dim * family::rotations(c).len();
        let norms = 4 * rows * (8 * (c.hidden / 8).div_ceil(sms)).next_multiple_of(32);
        let others = 320 + 64 * rows;
        let fixed = angles + 16 * MOST_SLOTS + norms + WARPS * exchange + tables + others;
        let slots = BLOCK_SHARED_BYTES.saturating_sub(fixed + beside_ring) / slot;
        // Where teams of warps have slots of their own, they are told apart by two rounds of them.
        let rounds = match kinds.iter().any(|k| k.storage.is_by_teams()) {
            true => 2,
            false => 1,
        };
        if slots < rounds * PRODUCERS {
            let needed = fixed + beside_ring + rounds * PRODUCERS * slot;
            return Err(limits::shared_memory(needed, BLOCK_SHARED_BYTES));
        }
        let slots = slots.min(MOST_SLOTS) / PRODUCERS * PRODUCERS;
        let shared = slots * slot + beside_ring;
        let number = |n: usize| n as i64;
        let mut defines = attention_defines(c, c.windows.alike());
        defines.extend([
            ("HIDDEN", number(c.hidden)),
            ("LAYERS", number(c.layers)),
            ("SPLITS", number(state::splits(c, sms))),
            ("EPS_BITS", i64::from(c.rms_norm_eps.to_bits())),
            ("GRID", number(sms)),
            ("WARPS", number(WARPS)),
            ("PRODUCERS", number(PRODUCERS)),
            ("SLOTS", number(slots)),
            ("LANDED", number(landed(slots))),
            ("BOXES", boxes.into()),
            ("SLOT_BYTES", number(slot)),
            ("WEIGHT_BYTES", number(WEIGHT_BYTES)),
            ("NESTED_BYTES", number(NESTED_BYTES)),
            ("BOOK_BYTES", number(BOOK_BYTES)),
            ("NF4_TABLE_BYTES", number(NF4_TABLE_BYTES)),
            ("DYNAMIC_SHARED", number(shared)),
            ("PARTIAL_BYTES", number(partial)),
            ("EXCHANGE_BYTES", number(exchange)),
            ("KINDS", number(kinds.len())),
            ("MOST_KINDS", number(KIND_NAMES.len())),
            ("BF16", Storage::Bf16 as i64),
            ("INT4", Storage::Int4 as i64),
            ("NF4", Storage::Nf4 as i64),
            ("FP8", Storage::Fp8 as i64),
            ("LUT4", Storage::Lut4 as i64),
            (
                "LUT4_SHIFTED",
                i64::from(products.iter().any(|(kind, _)| kind.shifted)),
            ),
            ("STORE", Epilogue::Store as i64),
            ("RESIDUAL", Epilogue::Residual as i64),
            ("SWIGLU", Epilogue::Swiglu as i64),
            ("LOGITS", Epilogue::Logits as i64),
            // Whether a product has three matrices: scale codes then begin anew within it.
            (
                "SEGMENTED",
                i64::from(kinds.iter().any(|k| k.segments[2] > 0)),
            ),
        ]);
        defines.extend(word::defines());
        defines.extend(state::defines(c, rows));
        defines.extend(family::step_defines(c));
        if rows > 1 {
            defines.push(("ROWS", number(rows)));
        }
        // The int4 products' groups are alike (`DeviceModel`), those of the others the largest.
        let group = kinds.iter().map(|k| k.group).min();
        defines.push(("INT4_GROUP", number(group.unwrap_or(LARGEST_GROUP))));
        // Where all scales are stored alike, how is known at compile time.
        match &scales[..] {
            [all] => defines.extend(all.iter().copied()),
            _ => defines.push(("SCALE_WIDTH", 0)),
        }
        for (name, storage) in STORED_SO {
            let stored_so = kinds.iter().filter(|k| k.storage == storage);
            defines.push((name, number(stored_so.count())));
        }
        for (kind, names) in kinds.iter().zip(KIND_NAMES) {
            let [s0, s1, s2] = kind.segments.map(number);
            let values = [
                number(kind.cols),
                kind.storage as i64,
                kind.epilogue as i64,
                s0,
                s1,
                s2,
            ];
            defines.extend(names.into_iter().zip(values));
        }
        Ok(Self {
            kinds,
            defines,
            threads: 32 * (WARPS + PRODUCERS) as u32,
            shared: shared as u32,
        })
    }
}

impl Plan {
    /// What computing a guess costs, as a part of a step, by the dearest of the ways in which
    /// weights are stored.
    pub(in crate::cuda) fn guess_cost(&self) -> f64 {
        let costs = self.kinds.iter().map(|kind| kind.storage.guess_cost());
        costs.fold(0.0, f64::max)
    }

    /// The number by which the kernel knows a kind of product.
    ///
    /// # Errors
    /// [`Error::Cuda`] for a kind that it was not compiled for.
    pub(super) fn number_of(&self, kind: &Kind) -> Result<usize> {
        let number = self.kinds.iter().position(|k| *k == kind.alike());
        number.ok_or_else(|| {
            Error::Cuda(format!(
                "the decode kernel was not compiled for a product {kind:?}"
            ))
        })
    }
}

/// Whether it has a code book that is shifted.
fn is_shifted(m: &DeviceMatrix) -> bool {
    match m.format {
        Format::Lut4 { levels, .. } => Halves::of(levels).is_some_and(|h| h.is_shifted()),
        Format::Bf16 | Format::Int4 { .. } | Format::Nf4 { .. } | Format::Fp8 { .. } => false,
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod tests;
