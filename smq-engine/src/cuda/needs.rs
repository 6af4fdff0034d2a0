//! Every kernel that a model may need, known without a GPU, so that all can be compiled ahead.

use super::contract::Defines;
use super::decode::{guessing_plan, many_defines, many_from, paged_defines, step_plan};
use super::family::{beyond_one_kernel, leave_defines, leaves, windows};
use super::fp8::fp8_defines;
use super::gemm_bf16::Bf16Cut;
use super::kv::{KV_FILE, kv_cache_defines, kv_defines};
use super::limits;
use super::prefill::attention::{Attention, Rows, rope_defines};
use super::prefill::{CHUNK, ROW_THREADS, logits_defines, row_defines};
use super::row_count::RowCount;
use super::rows::{Cut, Target, is_int4_product, reads_int4_order, widen_defines};
use super::serve::choose_defines;
use super::swiglu::{SwigluCut, fuses_bf16};
use super::weights::{DeviceMatrix, DeviceModel, Format};
use crate::error::Result;
use crate::kv::KvCode;
use smq_model::Source;

/// A kernel file and its macros.
pub type Need = (&'static str, Defines);

/// Multiprocessors of an H100 (SXM) and an H200.
pub const SMS: usize = 132;

/// Each once; for prompts of any length, up to `max_tokens` positions (by default the model's
/// longest context), on a GPU of `sms` multiprocessors.
///
/// # Errors
/// As [`CudaEngine::load`](super::CudaEngine::load), but for memory.
pub fn kernels_of(source: &Source, max_tokens: Option<usize>, sms: usize) -> Result<Vec<Need>> {
    let c = limits::config(source, max_tokens, sms)?;
    let model = DeviceModel::sizes(source, &c)?;
    let mut list: Vec<Need> = vec![
        ("rows.cu", row_defines(&c, sms)),
        ("choose.cu", choose_defines(c.vocab)),
    ];
    if beyond_one_kernel(&c, sms).is_empty() {
        let step = step_plan(&c, &model, sms)?.defines;
        let with = |more: Defines| ("decode.cu", [&step[..], &more].concat());
        for code in [KvCode::Bf16].into_iter().chain(KvCode::SMALLER) {
            let paged = [&kv_defines(code)[..], &paged_defines()].concat();
            let many = many_from(&c, code).filter(|from| *from < c.max_positions);
            for of_cache in [kv_defines(code), paged] {
                list.extend(many.map(|_| with([&of_cache[..], &many_defines()[..]].concat())));
                list.push(with(of_cache));
            }
        }
        // Where its scratch leaves room for the ring, steps with guesses.
        if let Ok(guessing) = guessing_plan(&c, &model, sms) {
            for code in [KvCode::Bf16].into_iter().chain(KvCode::SMALLER) {
                let defines = [&guessing.defines[..], &kv_defines(code)].concat();
                list.push(("decode.cu", defines));
            }
        }
    } else {
        list.push(("logits.cu", logits_defines(&c)));
    }
    list.extend(KvCode::SMALLER.map(|code| (KV_FILE, kv_cache_defines(&c, code))));
    let leaves = leaves(&c);
    if leaves {
        list.push(("leave.cu", leave_defines(&c, ROW_THREADS)));
    }
    for window in windows(&c) {
        for kind in Attention::all().filter(|kind| kind.fits(&c)) {
            let defines = |order| kind.defines(&c, window, order);
            list.extend([0, 1].map(|order| (kind.file(), defines(order))));
        }
    }
    let mut add = |need: Need| {
        if !list.contains(&need) {
            list.push(need);
        }
    };
    for rows in Rows::ALL {
        add(("rope.cu", rope_defines(&c, rows, KvCode::Bf16)));
    }
    for code in KvCode::SMALLER {
        add(("rope.cu", rope_defines(&c, Rows::Paged, code)));
    }
    let one = std::slice::from_ref::<DeviceMatrix>;
    let out = match leaves {
        true => Target::F32(0),
        false => Target::Add(0),
    };
    for layer in &model.layers {
        let width = (c.heads + 2 * c.kv_heads) * c.head_dim;
        products(&layer.qkv, &[Target::Bf16(0, width)], sms, &mut add);
        products(one(&layer.o), &[out], sms, &mut add);
        products(one(&layer.down), &[out], sms, &mut add);
        let joins = layer.biases.gate_up.is_none();
        let swiglu = [false, true].map(|order| Target::Swiglu(0, order, c.activation));
        let by_int4 = layer.gate_up.len() == 1 && reads_int4_order(&layer.gate_up, 1);
        let gate_up = match joins && by_int4 {
            true => &swiglu[..],
            false => &[Target::Bf16(0, 2 * c.intermediate)],
        };
        products(&layer.gate_up, gate_up, sms, &mut add);
        for m in (1..=CHUNK).filter(|m| joins && fuses_bf16(&layer.gate_up, *m)) {
            let cut = SwigluCut::new(&layer.gate_up[0], m, c.activation);
            add(("swiglu_bf16.cu", cut.defines));
        }
    }
    let of_head = [Target::Add(0), Target::F32(0)];
    let of_head = match beyond_one_kernel(&c, sms).is_empty() {
        true => &of_head[..1],
        false => &of_head,
    };
    products(one(&model.head), of_head, sms, &mut add);
    Ok(list)
}

/// What the products with `matrices` need, side by side, for any number of rows.
fn products(matrices: &[DeviceMatrix], targets: &[Target], sms: usize, add: &mut impl FnMut(Need)) {
    for w in matrices {
        match w.format {
            Format::Bf16 => {}
            Format::Fp8 { .. } => add(("fp8.cu", fp8_defines(w.cols))),
            Format::Int4 { .. } | Format::Lut4 { .. } | Format::Nf4 { .. } => {
                add(("dequantize.cu", widen_defines(w)))
            }
        }
    }
    if !is_int4_product(matrices, 1) {
        // Each number of rows that a tile has.
        for (m, w) in [16, 32, 64, 128]
            .into_iter()
            .flat_map(|m| matrices.iter().map(move |w| (m, w)))
        {
            for target in targets {
                let stride = match target {
                    Target::Bf16(_, stride) => Some(*stride),
                    Target::Add(_) | Target::F32(_) => None,
                    Target::Swiglu(..) => continue,
                };
                let mut cut = Bf16Cut::new(m, [w.rows, w.cols], stride, sms);
                if let Target::F32(_) = target {
                    cut = cut.overwriting();
                }
                add(("gemm_bf16.cu", cut.defines));
            }
        }
    }
    for n in row_counts().filter(|n| is_int4_product(matrices, *n)) {
        for (w, target) in matrices
            .iter()
            .flat_map(|w| targets.iter().map(move |t| (w, t)))
        {
            add(("gemm_int4.cu", Cut::new(w, n, *target, sms).defines));
        }
    }
}

/// A prompt's rows, and those of steps of many sequences, which all add up alike.
fn row_counts() -> impl Iterator<Item = RowCount> {
    (1..=CHUNK).flat_map(|m| [RowCount::from(m), RowCount { m, alike: true }])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_unquantized_model_needs_each_of_its_files_once() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny");
        let source = Source::open(&fixture).unwrap();
        let needs = kernels_of(&source, None, SMS).unwrap();
        let files: Vec<_> = needs.iter().map(|(file, _)| *file).collect();
        let count = |file: &str| files.iter().filter(|f| **f == file).count();
        let all = [
            ("rows.cu", 1),
            ("choose.cu", 1),
            ("gemm_bf16.cu", 20),
            ("rope.cu", 6),
            ("attention_prefill.cu", 16),
            ("attention_single.cu", 36),
            ("swiglu_bf16.cu", 4),
            ("decode.cu", 12),
            ("kv_cache.cu", 3),
        ];
        assert!(all.iter().all(|(file, n)| count(file) == *n), "{files:?}");
        assert_eq!(files.len(), all.iter().map(|(_, n)| n).sum::<usize>());
    }
}
