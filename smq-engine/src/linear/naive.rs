//! The twins of the fast products: one weight at a time, as the definition reads.

/// Dense `[rows, cols]` f32 weights times `x`, `[m, cols]`, in f64; `[m, rows]`.
pub(crate) fn product(w: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let rows = w.chunks_exact(cols);
    x.chunks_exact(cols)
        .flat_map(|x| rows.clone().map(move |w| dot(w, x)))
        .collect()
}

/// `sum |w| |x|`, which bounds the rounding error of a dot product; `[m, rows]`.
pub(crate) fn magnitude(w: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    product(&abs(w), &abs(x), cols)
}

fn dot(w: &[f32], x: &[f32]) -> f64 {
    w.iter()
        .zip(x)
        .map(|(w, x)| f64::from(*w) * f64::from(*x))
        .sum()
}

/// int4 `[rows, cols]` to f32: `q * scale`, low nibble = even column, two's complement.
pub(crate) fn dequantize(nibbles: &[u8], scales: &[f32], group: usize, cols: usize) -> Vec<f32> {
    let (row_bytes, groups) = (cols.div_ceil(2), cols.div_ceil(group));
    let mut out = Vec::new();
    for row in 0..nibbles.len() / row_bytes {
        for column in 0..cols {
            let byte = nibbles[row * row_bytes + column / 2];
            let code = if column % 2 == 0 {
                byte & 15
            } else {
                byte >> 4
            };
            let q = if code < 8 {
                i32::from(code)
            } else {
                i32::from(code) - 16
            };
            out.push(q as f32 * scales[row * groups + column / group]);
        }
    }
    out
}
