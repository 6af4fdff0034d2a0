//! How `decode.cu` is cut for a model and a GPU.

use crate::config::ModelConfig;
use crate::cuda::kernels::Defines;
use crate::cuda::state::RING;
use crate::cuda::weights::DeviceMatrix;
use crate::error::{Error, Result};

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

/// One kind of product: what the kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    cols: usize,
    int4: bool,
    epilogue: Epilogue,
    /// Rows of up to three matrices.
    segments: [usize; 3],
}

/// Bytes of shared memory that a block can have.
const BLOCK_BYTES: usize = 227 << 10;
/// Warps of a block that multiply; lines of 128 bytes of 8 rows in a slot.
const WARPS: usize = 12;
/// Warps of a block that copy.
const PRODUCERS: usize = 2;
/// Bytes that an SM has on their way from memory at a time, as measured best (kernels/NOTES.md).
const IN_FLIGHT_INT4: usize = 25_000;
const IN_FLIGHT_BF16: usize = 50_000;

/// The macros' names for each kind.
macro_rules! kind_names {
    ($($n:literal)*) => {
        [$([
            concat!("KIND", $n, "_K"),
            concat!("KIND", $n, "_INT4"),
            concat!("KIND", $n, "_EPILOGUE"),
            concat!("KIND", $n, "_SEG0"),
            concat!("KIND", $n, "_SEG1"),
            concat!("KIND", $n, "_SEG2"),
        ]),*]
    };
}
const KIND_NAMES: [[&str; 6]; 9] = kind_names!(0 1 2 3 4 5 6 7 8);
/// The number of different columns of int4 and of bf16 products, and each.
const CORE_NAMES: [[&str; 4]; 2] = [
    ["INT4_CORES", "INT4_CORE0_K", "INT4_CORE1_K", "INT4_CORE2_K"],
    ["BF16_CORES", "BF16_CORE0_K", "BF16_CORE1_K", "BF16_CORE2_K"],
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
            int4: first.is_int4(),
            epilogue,
            segments,
        }
    }

    /// Most tiles of 8 rows that one of `sms` blocks has.
    fn max_tiles(&self, sms: usize) -> usize {
        (self.segments.iter().sum::<usize>() / 8).div_ceil(sms)
    }

    /// Runs of consecutive scale codes in a tile.
    fn runs(&self) -> usize {
        if self.epilogue == Epilogue::Swiglu {
            2
        } else {
            1
        }
    }

    /// Bytes copied for one run of scale codes of `width` bits, which begins at any bit: whole 16 bytes around it,
    /// and the word after the last.
    #[must_use]
    pub fn run_bytes(&self, width: usize) -> usize {
        let codes = 8 / self.runs() * self.cols.div_ceil(128);
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

/// Blocks that share a key/value head's tokens: one block an SM where that is possible, at most 8.
#[must_use]
pub fn splits(c: &ModelConfig, sms: usize) -> usize {
    let fits = |s: &usize| s * c.kv_heads <= sms && c.head_dim.is_multiple_of(4 * s);
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

impl Plan {
    /// For the products of a model, each with its scales' macros, on `sms` multiprocessors.
    ///
    /// # Errors
    /// [`Error::Config`] for a model with too many heads or too many kinds of product, or one whose rows do not fit
    /// shared memory.
    pub fn new(c: &ModelConfig, products: &[(Kind, Defines)], sms: usize) -> Result<Self> {
        let (mut kinds, mut scales) = (Vec::new(), Vec::new());
        // Columns of int4 and of bf16 products: at most three each, the width of the stream, of the heads, of the MLP.
        let mut cores: [Vec<i64>; 2] = Default::default();
        for (kind, format) in products {
            push_new(&mut kinds, *kind);
            push_new(&mut cores[usize::from(!kind.int4)], kind.cols as i64);
            if kind.int4 {
                push_new(&mut scales, format.clone());
            }
        }
        if kinds.len() > KIND_NAMES.len() {
            return Err(Error::Config(format!(
                "its layers have {} different shapes and storages of weights; --device cuda runs up to {}, so quantize \
                 the layers alike, or run with --device cpu",
                kinds.len(),
                KIND_NAMES.len()
            )));
        }
        if c.kv_heads > sms {
            return Err(Error::Config(format!(
                "{} key/value heads are more than this GPU's {sms} multiprocessors; run with --device cpu",
                c.kv_heads
            )));
        }
        let any_int4 = kinds.iter().any(|k| k.int4);
        let codes = products
            .iter()
            .filter(|(k, _)| k.int4)
            .map(|(k, scales)| k.runs() * k.run_bytes(scales[1].1 as usize))
            .max()
            .unwrap_or(0);
        let slot = (8 * 128 * WARPS + codes).next_multiple_of(128);
        let queries = c.heads / c.kv_heads;
        let batch = queries.div_ceil(queries.div_ceil(512 / c.head_dim));
        let attention = 4 * (queries + 1 + batch * WARPS) * c.head_dim + 8 * batch * WARPS;
        // The last product takes both phases' scratch.
        let sums = |k: &Kind| {
            let bytes = 4 * 8 * k.max_tiles(sms) * WARPS;
            if k.epilogue == Epilogue::Logits {
                bytes.div_ceil(2)
            } else {
                bytes
            }
        };
        let partial = kinds
            .iter()
            .map(sums)
            .chain([attention])
            .max()
            .unwrap_or(0)
            .next_multiple_of(128);
        let fixed = 1024 + 8 * c.rope.rotary_dim + 16 * 64 + if any_int4 { WARPS * 784 } else { 0 };
        let slots = BLOCK_BYTES.saturating_sub(fixed + 128 + 2 * partial) / slot;
        if slots < 2 {
            return Err(Error::Config(format!(
                "a decode step needs {} bytes of shared memory, a block has {BLOCK_BYTES}; leave the largest matrix \
                 unquantized (--target mlp or all), or run with --device cpu",
                fixed + 128 + 2 * partial + 2 * slot
            )));
        }
        let slots = slots.min(64) / PRODUCERS * PRODUCERS;
        let in_flight = |bytes: usize| (bytes / (8 * 128 * WARPS) / PRODUCERS).max(1);
        let number = |n: usize| n as i64;
        let mut defines = super::attention_defines(c);
        defines.extend([
            ("HIDDEN", number(c.hidden)),
            ("LAYERS", number(c.layers)),
            ("SPLITS", number(splits(c, sms))),
            ("EPS_BITS", i64::from(c.rms_norm_eps.to_bits())),
            ("RING", number(RING)),
            ("GRID", number(sms)),
            ("WARPS", number(WARPS)),
            ("SLOTS", number(slots)),
            ("SLOT_BYTES", number(slot)),
            ("INT4_IN_FLIGHT", number(in_flight(IN_FLIGHT_INT4))),
            ("BF16_IN_FLIGHT", number(in_flight(IN_FLIGHT_BF16))),
            ("PARTIAL_BYTES", number(partial)),
            ("ANY_INT4", i64::from(any_int4)),
            ("KINDS", number(kinds.len())),
            // Whether a product has three matrices: scale codes then begin anew within it.
            (
                "SEGMENTED",
                i64::from(kinds.iter().any(|k| k.segments[2] > 0)),
            ),
        ]);
        // Where all scales are stored alike, how is known at compile time.
        match &scales[..] {
            [all] => defines.extend(all.iter().copied()),
            _ => defines.push(("SCALE_WIDTH", 0)),
        }
        for (cols, names) in cores.into_iter().zip(CORE_NAMES) {
            let values = [&[number(cols.len())], &cols[..]].concat();
            defines.extend(names.into_iter().zip(values));
        }
        for (kind, names) in kinds.iter().zip(KIND_NAMES) {
            let [s0, s1, s2] = kind.segments.map(number);
            let values = [
                number(kind.cols),
                i64::from(kind.int4),
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
            shared: (slots * slot + 128 + 2 * partial) as u32,
        })
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
