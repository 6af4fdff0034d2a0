//! What stands between products: norms, SwiGLU, embeddings, and a decode step's first and last kernel.
//!
//! Their data is warm in the L2 cache, as in the engine, where the kernel before has just written it.

use half::bf16;
use rayon::prelude::*;

use super::attention::rope;
use super::host::{bf16s, ids, normals};
use super::lab::{Floor, Lab, of};
use super::prompt_attention::ROWS;
use super::reference::{Worst, int4_order, silu};
use super::report::{Check, KernelReport};
use crate::cuda::args::Args;
use crate::cuda::kernels::{Call, Defines};
use crate::cuda::launch::Launch;
use crate::cuda::state::{RING, State};
use crate::error::Result;

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
    let c = &lab.config;
    let defines: Defines = vec![
        ("HIDDEN", c.hidden as i64),
        ("INTERMEDIATE", c.intermediate as i64),
        ("VOCAB", c.vocab as i64),
        ("EPS_BITS", i64::from(c.rms_norm_eps.to_bits())),
        ("GRID", i64::from(lab.gpu.sm_count())),
    ];
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
fn file(
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
        launch: Launch::new(m, 256).overlap(),
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
        launch: Launch::new([n.div_ceil(2048) as u32, m as u32], 256).overlap(),
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
        launch: Launch::new(m, 256).overlap(),
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

/// Checks and times a decode step's first and last kernel.
pub(super) fn run_step(lab: &mut Lab<'_>) -> Result<()> {
    let c = &lab.config;
    let defines: Defines = vec![
        ("HIDDEN", c.hidden as i64),
        ("ROTARY_HALF", (c.rope.rotary_dim / 2) as i64),
        ("GRID", i64::from(lab.gpu.sm_count())),
        ("RING", RING as i64),
    ];
    if lab.wants("begin_step", "embedding") {
        of("begin_step", "embedding", begin_step(lab, &defines))?;
    }
    if lab.wants("choose_token", "lm_head") {
        of("choose_token", "lm_head", choose_token(lab, &defines))?;
    }
    Ok(())
}

fn begin_step(lab: &mut Lab<'_>, defines: &Defines) -> Result<()> {
    const POSITION: usize = 12_345;
    const TOKEN: usize = 3;
    let c = lab.config.clone();
    let (n, sms) = (c.hidden, lab.gpu.sm_count() as usize);
    let (table, weight) = (bf16s(80, (TOKEN + 1) * n), normals(81, n));
    let inv_freq = c.rope.inv_freq(false);
    let state = lab.upload(&[POSITION as u32, 0, TOKEN as u32, 0])?;
    let (table_there, weight_there, inv_freq_there) = (
        lab.upload(&table)?,
        lab.upload(&weight)?,
        lab.upload(&inv_freq)?,
    );
    let [x, next_x, sums, rope_there] = [
        lab.poisoned(4 * n)?,
        lab.poisoned(4 * n)?,
        lab.poisoned(4 * sms)?,
        lab.poisoned(8 * inv_freq.len())?,
    ];
    let call = Call {
        kernel: lab.kernels.get("step.cu", defines.clone(), "begin_step")?,
        launch: Launch::new(1_u32, 1024).overlap(),
        args: Args::new()
            .ptr(state.ptr())
            .ptr(table_there.ptr())
            .ptr(weight_there.ptr())
            .ptr(inv_freq_there.ptr())
            .f32(c.rope.attention_factor())
            .ptr(x.ptr())
            .ptr(next_x.ptr())
            .ptr(sums.ptr())
            .ptr(rope_there.ptr()),
    };
    lab.run(&call)?;
    let (x, next_x): (Vec<f32>, Vec<f32>) = (lab.download(&x, n)?, lab.download(&next_x, n)?);
    let sums: Vec<f32> = lab.download(&sums, sms)?;
    let got_rope: Vec<f32> = lab.download(&rope_there, 2 * inv_freq.len())?;
    let mut worst = Worst::default();
    let mut square_sum = 0.0;
    for (k, v) in table[TOKEN * n..].iter().enumerate() {
        let v = v.to_f32();
        let equal = x[k] == v && next_x[k] == v * weight[k];
        worst.require(equal, || format!("column {k} has other bits"));
        square_sum += f64::from(v) * f64::from(v);
    }
    let sum = sums.iter().copied().map(f64::from).sum();
    let tolerance = f64::exp2(-18.0) * square_sum;
    worst.take(sum, square_sum, tolerance, || "the sum of squares".into());
    for (i, want) in rope(&inv_freq, POSITION).into_iter().enumerate() {
        // Two ulp of a value up to 1.
        let got = got_rope[i].into();
        worst.take(got, want, f64::exp2(-22.0), || {
            format!("cosine or sine {i}")
        });
    }
    let check = Check::new(
        worst,
        "all".into(),
        "none; cosines 2^-22, sum of squares 2^-18 of it",
    );
    let us = lab.time(std::slice::from_ref(&call))?;
    let report = KernelReport::new("begin_step", "embedding", us, check).rows(1);
    lab.report(report, &Floor::None);
    Ok(())
}

fn choose_token(lab: &mut Lab<'_>, defines: &Defines) -> Result<()> {
    let sms = lab.gpu.sm_count() as usize;
    let state = State::new(&lab.gpu, &lab.config)?;
    let mut values = normals(82, sms);
    let indices = ids(83, sms, lab.config.vocab);
    // The largest twice: the lower id wins.
    let (first, second) = (sms / 3, sms / 2);
    (values[first], values[second]) = (9.0, 9.0);
    let id = indices[first].min(indices[second]);
    // SAFETY: all three are waited for before the arrays go.
    unsafe {
        state.best_value.copy_from(lab.stream(), &values)?;
        state.best_index.copy_from(lab.stream(), &indices)?;
        state.state.copy_from(lab.stream(), &[77u32, 5, 0])?;
    }
    lab.stream().synchronize()?;
    let call = Call {
        kernel: lab
            .kernels
            .get("step.cu", defines.clone(), "choose_token")?,
        launch: Launch::new(1_u32, 1024).overlap(),
        args: Args::new()
            .ptr(state.best_value.ptr())
            .ptr(state.best_index.ptr())
            .ptr(state.state.ptr())
            .ptr(state.mailbox.device_ptr()),
    };
    lab.run(&call)?;
    let mut after = [0u32; 3];
    // SAFETY: as above.
    unsafe { state.state.copy_to(lab.stream(), &mut after)? };
    lab.stream().synchronize()?;
    let mut worst = Worst::default();
    worst.require(after == [78, 6, id], || {
        format!("the state is {after:?}, not [78, 6, {id}]")
    });
    let message = state.mailbox.as_slice::<u64>()[5];
    let want = 6 << 32 | u64::from(id);
    worst.require(message == want, || {
        format!("the mailbox has {message:#x}, not {want:#x}")
    });
    let check = Check::new(worst, "state and mailbox".into(), "none: bit for bit");
    let us = lab.time(std::slice::from_ref(&call))?;
    let report = KernelReport::new("choose_token", "lm_head", us, check).rows(1);
    lab.report(report, &Floor::None);
    Ok(())
}
