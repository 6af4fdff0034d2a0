//! What stands between a prompt's products: norms, SwiGLU, embeddings.
//!
//! Their data is warm in the L2 cache, as in the engine, where the kernel before has just written
//! it.

use half::bf16;
use rayon::prelude::*;

use super::host::{bf16s, ids, normals};
use super::lab::{Floor, Lab, of};
use super::prompt_attention::ROWS;
use super::reference::{Worst, int4_order, silu};
use super::report::{Check, KernelReport};
use smq_engine::Result;
use smq_engine::cuda::{Args, Call, Defines, Launch, ROW_THREADS, row_defines, swiglu_launch};

/// bf16's rounding, which is below 2^-8 by more (2^-16) than f32 arithmetic errs.
const BF16: &str = "2^-8 |y|";

fn is_near(worst: &mut Worst, got: bf16, want: f64, what: impl FnOnce() -> String) {
    worst.take(
        got.to_f64(),
        want,
        f64::exp2(-8.0) * want.abs() + f64::exp2(-120.0),
        what,
    );
}

/// Checks and times the row-wise kernels of a prompt.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    let defines = row_defines(&lab.config, lab.gpu.sm_count() as usize);
    type Case = fn(&mut Lab<'_>, &Defines, usize) -> Result<()>;
    let cases: [(&str, &str, Case); 3] = [
        ("norm_rows", "norm", norm),
        ("swiglu_rows", "gate_up", swiglu),
        ("embed_rows", "embedding", embed),
    ];
    for (kernel, layer, case) in cases {
        if lab.wants(kernel, layer) {
            for m in ROWS {
                of(kernel, layer, case(lab, &defines, m))?;
            }
        }
    }
    Ok(())
}

/// Times `call`, which moves `bytes`.
pub(super) fn file(
    lab: &mut Lab<'_>,
    kernel: &'static str,
    layer: &'static str,
    m: usize,
    call: &Call,
    bytes: usize,
    check: Check,
) -> Result<()> {
    let us = lab.time(std::slice::from_ref(call))?;
    let floor = Floor::Copy(bytes, lab.copy_floor(bytes, false)?);
    lab.report(KernelReport::new(kernel, layer, us, check).rows(m), &floor);
    Ok(())
}

fn norm(lab: &mut Lab<'_>, defines: &Defines, m: usize) -> Result<()> {
    let (n, eps) = (lab.config.hidden, f64::from(lab.config.rms_norm_eps));
    let (x, weight) = (normals(70, m * n), normals(71, n));
    let (x_there, weight_there) = (lab.upload(&x)?, lab.upload(&weight)?);
    let out = lab.poisoned(2 * m * n)?;
    let call = Call {
        kernel: lab.kernels.get("rows.cu", defines.clone(), "norm_rows")?,
        launch: Launch::new(m, ROW_THREADS).overlap(),
        args: Args::new()
            .ptr(x_there.ptr())
            .ptr(weight_there.ptr())
            .ptr(out.ptr())
            .i32(1),
    };
    lab.run(&call)?;
    let got: Vec<bf16> = lab.download(&out, m * n)?;
    let mut worst = Worst::default();
    for (r, x) in x.chunks(n).enumerate() {
        let square_sum: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        let factor = 1.0 / (square_sum / n as f64 + eps).sqrt();
        for (k, x) in x.iter().enumerate() {
            let want = f64::from(*x) * factor * f64::from(weight[k]);
            let got = got[r * n + int4_order(k)];
            is_near(&mut worst, got, want, || format!("row {r}, column {k}"));
        }
    }
    let check = Check::new(worst, format!("all {m} rows"), BF16);
    file(lab, "norm_rows", "norm", m, &call, 6 * m * n, check)
}

fn swiglu(lab: &mut Lab<'_>, defines: &Defines, m: usize) -> Result<()> {
    let n = lab.config.intermediate;
    let gate_up = bf16s(72, 2 * m * n);
    let there = lab.upload(&gate_up)?;
    let out = lab.poisoned(2 * m * n)?;
    let call = Call {
        kernel: lab.kernels.get("rows.cu", defines.clone(), "swiglu_rows")?,
        launch: swiglu_launch(n, m),
        args: Args::new().ptr(there.ptr()).ptr(out.ptr()).i32(1),
    };
    lab.run(&call)?;
    let got: Vec<bf16> = lab.download(&out, m * n)?;
    let rows = gate_up.par_chunks(2 * n).zip(got.par_chunks(n)).enumerate();
    let worst = rows.map(|(r, (gate_up, got))| {
        let mut worst = Worst::default();
        for k in 0..n {
            let want = silu(gate_up[k].to_f64()) * gate_up[n + k].to_f64();
            is_near(&mut worst, got[int4_order(k)], want, || {
                format!("row {r}, column {k}")
            });
        }
        worst
    });
    let worst = worst.reduce(Worst::default, Worst::or);
    let check = Check::new(worst, format!("all {m} rows"), BF16);
    file(lab, "swiglu_rows", "gate_up", m, &call, 6 * m * n, check)
}

fn embed(lab: &mut Lab<'_>, defines: &Defines, m: usize) -> Result<()> {
    let (n, vocab) = (lab.config.hidden, lab.config.vocab);
    let (table, tokens) = (bf16s(73, vocab * n), ids(74, m, vocab));
    let (table_there, tokens_there) = (lab.upload(&table)?, lab.upload(&tokens)?);
    let out = lab.poisoned(4 * m * n)?;
    let call = Call {
        kernel: lab.kernels.get("rows.cu", defines.clone(), "embed_rows")?,
        launch: Launch::new(m, ROW_THREADS).overlap(),
        args: Args::new()
            .ptr(tokens_there.ptr())
            .ptr(table_there.ptr())
            .ptr(out.ptr()),
    };
    lab.run(&call)?;
    let got: Vec<f32> = lab.download(&out, m * n)?;
    let mut worst = Worst::default();
    for (r, (token, got)) in tokens.iter().zip(got.chunks(n)).enumerate() {
        let row = &table[*token as usize * n..][..n];
        let equal = row.iter().zip(got).all(|(want, got)| want.to_f32() == *got);
        worst.require(equal, || format!("row {r} is not token {token}'s"));
    }
    let check = Check::new(worst, format!("all {m} rows"), "none: bit for bit");
    file(lab, "embed_rows", "embedding", m, &call, 6 * m * n, check)
}
