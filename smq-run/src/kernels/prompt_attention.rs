//! Rotation and attention of a prompt.

use half::bf16;
use rayon::prelude::*;

use super::attention::{CAPACITY_STEP, LAYER, attend_head, rope, rotate, wide};
use super::host::{bf16s, sample};
use super::lab::{Floor, Lab, of};
use super::reference::{Worst, int4_order};
use super::report::{Check, KernelReport};
use smq_engine::cuda::{
    Args, Attention, Call, Launch, ROPE_THREADS, Rows, rope_defines, table_launch,
};
use smq_engine::{KvCode, Result};

pub(super) const ROWS: [usize; 3] = [128, 512, 2048];
/// Rows whose attention is compared, all heads of each.
const SAMPLE: usize = 64;

/// Checks and times a prompt's rotation and attention.
pub(super) fn run(lab: &mut Lab<'_>) -> Result<()> {
    for m in ROWS {
        let (rope, attention) = (
            lab.wants("rope_and_cache", LAYER),
            lab.wants("attention_prefill", LAYER),
        );
        if rope || attention {
            of("a prompt", LAYER, prefill(lab, m, rope, attention))?;
        }
    }
    Ok(())
}

fn prefill(lab: &mut Lab<'_>, m: usize, with_rope: bool, with_attention: bool) -> Result<()> {
    let c = lab.config.clone();
    let (d, heads) = (c.head_dim, c.kv_heads);
    let width = heads * d;
    let kind = Attention::of(&c, m, Rows::One, KvCode::Bf16);
    let rope_kernel = |name| {
        lab.kernels
            .get("rope.cu", rope_defines(&c, Rows::One, kind.code), name)
    };
    let capacity = m.next_multiple_of(CAPACITY_STEP);
    let side = heads * capacity * d;
    let qkv = bf16s(60, 3 * width * m);
    let inv_freq = c.rope.inv_freq(false);
    let (qkv_there, inv_freq_there) = (lab.upload(&qkv)?, lab.upload(&inv_freq)?);
    let [q, keys, values, table] = [
        lab.poisoned(2 * m * width)?,
        lab.poisoned(2 * side)?,
        lab.poisoned(2 * side)?,
        lab.poisoned(4 * m * c.rope.rotary_dim)?,
    ];
    let table_call = Call {
        kernel: rope_kernel("rotation_table")?,
        launch: table_launch(&c, m),
        args: Args::new()
            .ptr(inv_freq_there.ptr())
            .f32(c.rope.attention_factor())
            .i32(0)
            .ptr(0)
            .ptr(table.ptr()),
    };
    let rope_call = Call {
        kernel: rope_kernel("rope_and_cache")?,
        launch: Launch::new(m, ROPE_THREADS).overlap(),
        args: Args::new()
            .ptr(qkv_there.ptr())
            .ptr(q.ptr())
            .ptr(keys.ptr())
            .ptr(values.ptr())
            .i32(capacity as i32)
            .i32(0)
            .ptr(table.ptr()),
    };
    lab.run(&table_call)?;
    lab.run(&rope_call)?;
    let rotated: Vec<bf16> = lab.download(&q, m * width)?;
    let (k, v): (Vec<bf16>, Vec<bf16>) = (lab.download(&keys, side)?, lab.download(&values, side)?);
    if with_rope {
        let mut worst = Worst::default();
        for row in 0..m {
            let table = rope(&inv_freq, row);
            for h in 0..2 * heads {
                let at = (row * 3 * heads + h) * d;
                let want = rotate(&wide(&qkv[at..at + d]), &table);
                let got = match h.checked_sub(heads) {
                    None => &rotated[(row * heads + h) * d..],
                    Some(h) => &k[(h * capacity + row) * d..],
                };
                for (i, (want, magnitude)) in want.into_iter().enumerate() {
                    let tolerance = f64::exp2(-8.0) * want.abs() + f64::exp2(-20.0) * magnitude;
                    worst.take(got[i].to_f64(), want, tolerance, || {
                        format!("row {row}, head {h}, {i}")
                    });
                }
            }
            for h in 0..heads {
                let (at, to) = (
                    (row * 3 * heads + 2 * heads + h) * d,
                    (h * capacity + row) * d,
                );
                let equal = qkv[at..at + d] == v[to..to + d];
                worst.require(equal, || format!("values of row {row}, head {h} differ"));
            }
        }
        let check = Check::new(
            worst,
            format!("all {m} rows"),
            "2^-8 |y| + 2^-20 (|a| + |b|)",
        );
        let us = lab.time(std::slice::from_ref(&rope_call))?;
        let bytes = 2 * 2 * 3 * width * m;
        let floor = Floor::Copy(bytes, lab.copy_floor(bytes, false)?);
        lab.report(
            KernelReport::new("rope_and_cache", LAYER, us, check).rows(m),
            &floor,
        );
    }
    if !with_attention {
        return Ok(());
    }
    let rows = sample(61, m, SAMPLE);
    let of_row = |row: &usize| -> Vec<_> {
        let of_head = |h: usize| {
            let q = wide(&rotated[(row * heads + h) * d..][..d]);
            let head = h * capacity * d..(h + 1) * capacity * d;
            attend_head(&q, &k[head.clone()], &v[head], row + 1)
        };
        (0..heads).flat_map(of_head).collect()
    };
    let outputs: Vec<Vec<_>> = rows.par_iter().map(of_row).collect();
    let out = lab.poisoned(2 * m * width)?;
    let call = Call {
        kernel: kind.kernels(&lab.kernels, &c, c.windows.alike())?[1].clone(),
        launch: kind.launch(&c, m),
        args: Args::new()
            .ptr(q.ptr())
            .ptr(keys.ptr())
            .ptr(values.ptr())
            .i32(capacity as i32)
            .i32(m as i32)
            .i32(0)
            .ptr(0)
            .ptr(out.ptr()),
    };
    lab.run(&call)?;
    let got: Vec<bf16> = lab.download(&out, m * width)?;
    let mut worst = Worst::default();
    let written = got.iter().all(|v| !v.is_nan());
    worst.require(written, || {
        "some outputs are not written, or not numbers".into()
    });
    for (row, outputs) in rows.iter().zip(&outputs) {
        for (i, o) in outputs.iter().enumerate() {
            let got = got[row * width + int4_order(i)].to_f64();
            // Weights are rounded to bf16, 2^-8 at most, and so is the output.
            let rounding = f64::exp2(-8.0) * o.magnitude + f64::exp2(-8.0) * o.value.abs();
            worst.take(got, o.value, o.tolerance + rounding, || {
                format!("row {row}, column {i}")
            });
        }
    }
    let checked = format!("{} of {m} rows, all {heads} heads", rows.len());
    let check = Check::new(worst, checked, "2^-8 sum p |v| + 2^-8 |y|");
    let us = lab.time(std::slice::from_ref(&call))?;
    let flop = 4.0 * (d * heads) as f64 * (m * (m + 1) / 2) as f64;
    let report = KernelReport::new("attention_prefill", LAYER, us, check);
    lab.report(report.rows(m).flop(flop), &Floor::None);
    Ok(())
}
