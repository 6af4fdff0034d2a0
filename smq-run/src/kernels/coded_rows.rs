//! Products of many activation rows with NF4 and FP8 weights, all that the engine does for one.

use half::bf16;
use smq_convert::Method;
use smq_format::fp8;

use super::coded::Coded;
use super::host::bf16s;
use super::lab::{Floor, Lab, of};
use super::products::{Layer, short_lines};
use super::reference::{Rows, Worst};
use super::report::{Check, KernelReport};
use super::row_kernels::file;
use super::rows::{BF16, FP8, Io, MOST, flop, row_layers};
use smq_engine::Result;
use smq_engine::cuda::{
    Activations, Blas, Epilogue, QuantizedRows, RowProducts, Target, scratch_bytes,
};
use smq_engine::linear::QuantizedX;

/// Few and many, whole tiles and not.
const ROWS: [usize; 6] = [1, 17, 100, 128, 512, MOST];
/// Bytes of the workspace that cuBLASLt is given.
const WORKSPACE: usize = 32 << 20;

/// Checks and times quantizing activations, and products.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for (layer, cols) in [
        ("hidden", lab.config.hidden),
        ("down", lab.config.intermediate),
        ("576 columns", 576),
    ] {
        if lab.wants("quantize_rows", layer) {
            for m in ROWS {
                of("quantize_rows", layer, quantize(lab, layer, cols, m))?;
            }
        }
    }
    for (kernel, method) in [("nf4_rows", Method::Nf4), ("fp8_rows", Method::Fp8)] {
        for layer in row_layers(lab, kernel) {
            of(kernel, layer.name, products(lab, &layer, kernel, method))?;
        }
    }
    for layer in short_lines() {
        if lab.wants("fp8_rows", layer.name) {
            let done = products(lab, &layer, "fp8_rows", Method::Fp8);
            of("fp8_rows", layer.name, done)?;
        }
    }
    Ok(())
}

/// Rows of many magnitudes, one of zeros, each before columns that are not to be read.
fn quantize(lab: &mut Lab<'_>, layer: &'static str, cols: usize, m: usize) -> Result<()> {
    let stride = cols + 128;
    let mut x = bf16s(80, m * stride);
    for (r, x) in x.chunks_exact_mut(stride).enumerate() {
        let scale = match r % 16 {
            15 => 0.0,
            r => f32::exp2(r as f32 - 8.0),
        };
        for v in &mut x[..cols] {
            *v = bf16::from_f32(v.to_f32() * scale);
        }
        x[cols..].fill(bf16::NAN);
    }
    let there = lab.upload(&x)?;
    let bytes = QuantizedRows::bytes(m, cols);
    let memory = lab.poisoned(bytes + cols)?;
    let rows = QuantizedRows::place(memory.span(), m, cols)?;
    let activations = Activations {
        span: there.span(),
        capacity: m,
        stride,
    };
    let call = rows.call(&lab.kernels, m, cols, &activations)?;
    lab.run(&call)?;

    let x: Vec<f32> = x
        .chunks_exact(stride)
        .flat_map(|x| x[..cols].iter().map(|v| v.to_f32()))
        .collect();
    let want = QuantizedX::new(&x, cols);
    let got: Vec<u8> = lab.download(&memory, bytes + cols)?;
    let (got, past) = got.split_at(bytes);
    let (scales, codes) = got.split_at(bytes - m * cols);
    let scales = scales.as_chunks::<4>().0.iter();
    let mut worst = Worst::default();
    worst.require(past.iter().all(|b| *b == 0xff), || {
        "codes behind the last row are written".into()
    });
    for (r, (got, want)) in scales.zip(&want.scales).enumerate() {
        let got = f32::from_le_bytes(*got);
        worst.require(got.to_bits() == want.to_bits(), || {
            format!("row {r} has scale {got:e}, not {want:e}")
        });
    }
    for (i, (got, want)) in codes.iter().zip(&want.values).enumerate() {
        let got = fp8::VALUES[usize::from(*got)];
        worst.require(got.to_bits() == want.to_bits(), || {
            let (r, c) = (i / cols, i % cols);
            format!("row {r}, column {c} is {got}, not {want}")
        });
    }
    let check = Check::new(worst, format!("all {m} rows"), "none: bit for bit");
    let moved = 3 * m * cols + 4 * m;
    file(lab, "quantize_rows", layer, m, &call, moved, check)
}

fn products(lab: &mut Lab<'_>, layer: &Layer, kernel: &'static str, method: Method) -> Result<()> {
    let coded = Coded::new(lab, layer, method)?;
    let io = Io::new(lab, layer, false)?;
    let there = lab.upload(&io.x)?;
    // No padding: columns are multiples of 128, or quantized to rows that have none.
    let x = Activations {
        span: there.span(),
        capacity: MOST,
        stride: layer.cols,
    };
    let scratch = lab.poisoned(scratch_bytes(&coded.matrices[..1], MOST))?;
    let products = RowProducts::new(Blas::new(&lab.gpu, WORKSPACE)?, scratch.span());
    let target = match layer.epilogue {
        Epilogue::Residual => Target::Add(io.out.ptr()),
        Epilogue::Store | Epilogue::Swiglu | Epilogue::Logits => {
            Target::Bf16(io.out.ptr(), layer.rows)
        }
    };
    let is_fp8 = matches!(method, Method::Fp8);
    let quantized = is_fp8.then(|| {
        let x: Vec<f32> = io.x.iter().map(|v| v.to_f32()).collect();
        QuantizedX::new(&x, layer.cols)
    });
    // FP8's factors are the codes, NF4's weights are rounded to bf16.
    let w_row = |r: usize| -> Vec<f64> {
        let row = coded.row(r).into_iter();
        match is_fp8 {
            true => row.map(f64::from).collect(),
            false => row.map(|v| bf16::from_f32(v).to_f64()).collect(),
        }
    };
    let x_row = |t: usize| -> Vec<f64> {
        let Some(q) = &quantized else {
            return io.token(layer, t);
        };
        let scale = f64::from(q.scales[t]);
        let values = q.values[t * layer.cols..(t + 1) * layer.cols].iter();
        values.map(|v| f64::from(*v) * scale).collect()
    };
    let factors: (Rows<'_>, Rows<'_>) = (&w_row, &x_row);
    for m in ROWS {
        io.reset(lab, layer, m)?;
        let product = |stream: &_, i: usize| {
            let w = std::slice::from_ref(&coded.matrices[i]);
            // SAFETY: every buffer holds `m` rows and outlives the wait; all products are on one
            // stream.
            unsafe { products.run(&lab.kernels, stream, w, m, &x, target) }
        };
        product(lab.stream(), 0)?;
        lab.stream().synchronize()?;
        let tolerance = if is_fp8 { FP8 } else { BF16 };
        let check = io.check(lab, layer, factors, m, tolerance)?;
        let us = lab.time_each(coded.matrices.len(), product)?;
        let mut report = KernelReport::new(kernel, layer.name, us, check);
        report.weights = Some(method.family().name());
        let report = report.rows(m).flop(flop(layer, m));
        lab.report(report, &Floor::None);
    }
    Ok(())
}
