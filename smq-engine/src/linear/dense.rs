//! Dense (bf16, f16, f32, E4M3) x f32 product over weight rows, widening in registers.

use smq_format::Dtype;

use super::lanes::{Isa, Lanes, dispatch};

/// `out[row, i] = sum over columns of w[row, column] * x[i, column]`; `w` is `[rows, cols]`,
/// `x` `[m, cols]`, `out` `[rows, m]`.
pub(crate) fn product(isa: Isa, dtype: Dtype, w: &[u8], x: &[f32], m: usize, out: &mut [f32]) {
    check_lengths(dtype.bytes(), w, x, m, out);
    match dtype {
        Dtype::Bf16 => run_bf16(isa, w, x, m, out),
        Dtype::F16 => run_f16(isa, w, x, m, out),
        Dtype::F32 => run_f32(isa, w, x, m, out),
    }
}

/// [`product`] with E4M3 codes, none of them NaN, without their scales.
pub(crate) fn product_e4m3(isa: Isa, w: &[u8], x: &[f32], m: usize, out: &mut [f32]) {
    check_lengths(1, w, x, m, out);
    run_e4m3(isa, w, x, m, out);
}

/// What the kernels' pointer arithmetic relies on.
fn check_lengths(elem_bytes: usize, w: &[u8], x: &[f32], m: usize, out: &[f32]) {
    let (rows, cols) = (out.len() / m, x.len() / m);
    assert!(
        out.len() == rows * m && x.len() == cols * m,
        "x is [m, cols], output [rows, m]"
    );
    assert_eq!(
        w.len(),
        rows * cols * elem_bytes,
        "weights are [rows, cols]"
    );
}

/// [`product`] with f32 weights in memory.
pub(crate) fn product_f32(isa: Isa, w: &[f32], x: &[f32], m: usize, out: &mut [f32]) {
    product(isa, Dtype::F32, bytemuck::cast_slice(w), x, m, out);
}

dispatch! { fn run_bf16 => bf16(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) }
dispatch! { fn run_f16 => f16(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) }
dispatch! { fn run_e4m3 => e4m3(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) }
dispatch! { fn run_f32 => f32_(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) }

/// A stored element type: how a register and a single element are read.
trait Stored {
    const BYTES: usize;
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V;
    unsafe fn one(p: *const u8) -> f32;
}

macro_rules! stored {
    ($name:ident, $load:ident, $bytes:literal, $one:expr, $kernel:ident) => {
        struct $name;
        impl Stored for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<L: Lanes>(p: *const u8) -> L::V {
                // SAFETY: the caller vouches for COUNT elements and the instruction set.
                unsafe { L::$load(p) }
            }
            #[inline(always)]
            unsafe fn one(p: *const u8) -> f32 {
                // SAFETY: the caller vouches for one element.
                let bytes = unsafe { p.cast::<[u8; $bytes]>().read() };
                $one(bytes)
            }
        }
        #[inline(always)]
        unsafe fn $kernel<L: Lanes>(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) {
            // SAFETY: `product` checked every length; L's instruction set is there.
            unsafe { kernel::<L, $name>(w, x, m, out) }
        }
    };
}
stored!(
    StoredBf16,
    load_bf16,
    2,
    |b| half::bf16::from_le_bytes(b).to_f32(),
    bf16
);
stored!(
    StoredF16,
    load_f16,
    2,
    |b| half::f16::from_le_bytes(b).to_f32(),
    f16
);
stored!(
    StoredE4m3,
    load_e4m3,
    1,
    |[code]: [u8; 1]| smq_format::fp8::VALUES[usize::from(code)],
    e4m3
);
stored!(StoredF32, load_f32, 4, f32::from_le_bytes, f32_);

#[inline(always)]
unsafe fn kernel<L: Lanes, S: Stored>(w: &[u8], x: &[f32], m: usize, out: &mut [f32]) {
    // SAFETY: as `tile` demands, see `columns`.
    unsafe {
        let mut i = 0;
        while i < m {
            i += match m - i {
                1 => columns::<L, S, 4, 1>(w, x, m, i, out),
                2 => columns::<L, S, 2, 2>(w, x, m, i, out),
                3 => columns::<L, S, 2, 3>(w, x, m, i, out),
                _ => columns::<L, S, 4, 4>(w, x, m, i, out),
            }
        }
    }
}

/// Activation rows `i .. i + M` against every weight row, `R` weight rows at a time.
#[inline(always)]
unsafe fn columns<L: Lanes, S: Stored, const R: usize, const M: usize>(
    w: &[u8],
    x: &[f32],
    m: usize,
    i: usize,
    out: &mut [f32],
) -> usize {
    let rows = out.len() / m;
    let mut row = 0;
    // SAFETY: rows row .. row + R (or + 1) are below `rows`, as `tile` demands.
    unsafe {
        while row + R <= rows {
            tile::<L, S, R, M>(w, x, m, row, i, out);
            row += R;
        }
        while row < rows {
            tile::<L, S, 1, M>(w, x, m, row, i, out);
            row += 1;
        }
    }
    M
}

/// An `[R, M]` tile of the output.
#[inline(always)]
unsafe fn tile<L: Lanes, S: Stored, const R: usize, const M: usize>(
    w: &[u8],
    x: &[f32],
    m: usize,
    row: usize,
    i: usize,
    out: &mut [f32],
) {
    let cols = x.len() / m;
    // SAFETY: row + R <= rows and i + M <= m, and each row has `cols` elements.
    unsafe {
        let row_bytes = cols * S::BYTES;
        let ws = w.as_ptr().add(row * row_bytes);
        let xs = x.as_ptr().add(i * cols);
        let mut total = [[L::splat(0.0); M]; R];
        let whole = cols / L::COUNT * L::COUNT;
        let mut c = 0;
        while c < whole {
            let from = ws.add(c * S::BYTES);
            let mut weights = [S::load::<L>(from); R];
            for r in 1..R {
                weights[r] = S::load::<L>(from.add(r * row_bytes));
            }
            // Several short rows at once are no stream that hardware recognises.
            for r in R..2 * R {
                L::prefetch(from.wrapping_add(r * row_bytes));
            }
            for j in 0..M {
                let x = L::load(xs.add(j * cols + c));
                for r in 0..R {
                    total[r][j] = L::fma(weights[r], x, total[r][j]);
                }
            }
            c += L::COUNT;
        }
        for r in 0..R {
            for j in 0..M {
                let mut sum = L::sum(total[r][j]);
                for c in whole..cols {
                    sum += S::one(ws.add(r * row_bytes + c * S::BYTES)) * *xs.add(j * cols + c);
                }
                out[(row + r) * m + i + j] = sum;
            }
        }
    }
}
