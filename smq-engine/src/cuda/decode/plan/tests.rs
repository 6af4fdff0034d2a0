//! The kernel's demands on its macros and its launch, for the models that are tested.

use smq_format::Levels;
use smq_format::scale::{MiniFloat, ScaleFormat};

use super::*;
use crate::cuda::memory::Span;

fn config(hidden: usize, heads: usize, kv_heads: usize, head: usize) -> ModelConfig {
    let json = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": {hidden}, "num_attention_heads": {heads},
            "num_key_value_heads": {kv_heads}, "head_dim": {head}, "intermediate_size": 1024, "vocab_size": 1000,
            "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096}}"#
    );
    ModelConfig::from_json(json.as_bytes()).unwrap()
}

fn formats() -> Vec<Format> {
    let scales = Span::at(0, 0);
    let in_groups = |group, format| Format::Int4 {
        scales,
        format,
        group,
    };
    let int4 = |format| in_groups(128, format);
    let mini = |mantissa| ScaleFormat::Mini(MiniFloat::new(5, mantissa, 100).unwrap());
    let mut list = vec![Format::Bf16, int4(ScaleFormat::F32), int4(ScaleFormat::F16)];
    list.extend([0, 3, 5, 10].map(|m| int4(mini(m))));
    for group in [64, 32] {
        list.extend([ScaleFormat::F32, ScaleFormat::F16, mini(5)].map(|f| in_groups(group, f)));
    }
    list.push(Format::Nf4 {
        absmax: scales,
        nested_absmax: scales,
        offset: 0.0,
    });
    list.push(Format::Fp8 { scales });
    for (group, levels) in [(128, Levels::nf4()), (64, Levels::int4()), (32, shifted())] {
        list.push(Format::Lut4 {
            scales,
            format: mini(3),
            group,
            levels,
        });
    }
    list
}

/// NF4's levels with a negative one for 0.
fn shifted() -> Levels {
    let mut levels = Levels::nf4().bytes();
    levels[7] = -1;
    Levels::new(levels).unwrap()
}

/// One shifted book is compiled in for all products, and none for none; where books alone differ,
/// the kind is the same.
#[test]
fn books_are_shifted_where_one_is() {
    let lut4 = |levels| Format::Lut4 {
        scales: Span::at(32, 0),
        format: ScaleFormat::F16,
        group: 128,
        levels,
    };
    for (second, expected) in [(Levels::nf4(), 0), (shifted(), 1)] {
        let kinds = [Levels::nf4(), second].map(|levels| {
            let matrices = [matrix(256, 256, lut4(levels))];
            let defines = matrices[0].scale_defines().to_vec();
            (Kind::new(&matrices, Epilogue::Store), defines)
        });
        let plan = Plan::new(&config(256, 8, 8, 32), &kinds, 132).unwrap();
        assert_eq!(plan.kinds.len(), 1);
        assert!(kinds.iter().all(|(kind, _)| plan.number_of(kind).is_ok()));
        assert!(plan.defines.contains(&("LUT4_SHIFTED", expected)));
    }
}

fn matrix(rows: usize, cols: usize, format: Format) -> DeviceMatrix {
    DeviceMatrix {
        rows,
        cols,
        data: Span::at(0, 0),
        format,
    }
}

/// What `decode.cu` asks of its macros and its launch.
fn check(
    what: &str,
    plan: &Plan,
    products: &[(Vec<DeviceMatrix>, Epilogue)],
    (sms, tokens): (usize, usize),
) {
    let get = |name: &str| {
        let mut found = plan.defines.iter().filter(|d| d.0 == name);
        let value = found.next().unwrap_or_else(|| panic!("no {name}")).1;
        assert!(found.next().is_none(), "{what}: {name} twice");
        usize::try_from(value).unwrap()
    };
    let (slots, slot, partial) = (get("SLOTS"), get("SLOT_BYTES"), get("PARTIAL_BYTES"));
    assert!(
        slots >= PRODUCERS && slots.is_multiple_of(PRODUCERS),
        "{what}: {slots} slots"
    );
    assert!(slot.is_multiple_of(32), "{what}");
    let words = 2 * 4 * word::WORDS * PRODUCERS;
    assert_eq!(
        plan.shared as usize,
        slots * slot + 128 + 2 * partial + words,
        "{what}"
    );
    // Weights of the next norm, a float for each row of a block, in whole warps.
    let norms = 4 * (8 * (get("HIDDEN") / 8).div_ceil(sms)).next_multiple_of(32);
    let mut fixed = 16 * slots + WARPS * get("EXCHANGE_BYTES");
    // Of several tokens each has its own.
    fixed += tokens * (8 * get("ROTARY_HALF") + norms);
    // Partial results of warps: of the best logit, of squares, of maxima.
    fixed += 320 + 64 * tokens;
    if get("NF4_KINDS") > 0 {
        // Static shared memory, of which there are 48 KiB at most.
        fixed += 4 * (256 * 32 + 256);
        assert!(fixed <= 48 << 10, "{what}: {fixed} static bytes");
    }
    assert!(
        plan.shared as usize + fixed <= BLOCK_SHARED_BYTES,
        "{what}: {} bytes",
        plan.shared
    );
    for (matrices, epilogue) in products {
        let first = &matrices[0];
        let kind = Kind::new(matrices, *epilogue);
        assert!(plan.number_of(&kind).is_ok(), "{what}");
        // Every row is some tile's, and its codes fit behind a slot's weights: where they begin
        // within 16 bytes, all of them, and the word after the last.
        let rows: usize = matrices.iter().map(|m| m.rows).sum();
        assert_eq!(kind.segments.iter().sum::<usize>(), rows, "{what}");
        let width = first.scale_defines()[1].1 as usize;
        let (runs, run_rows) = if *epilogue == Epilogue::Swiglu {
            (2, 4)
        } else {
            (1, 8)
        };
        let (groups, nested, book) = match first.format {
            Format::Bf16 => continue,
            Format::Int4 { group, .. } | Format::Lut4 { group, .. } => {
                assert_eq!(get("INT4_GROUP"), group, "{what}");
                let book = matches!(first.format, Format::Lut4 { .. });
                (first.cols.div_ceil(group), 0, 32 * usize::from(book))
            }
            Format::Nf4 { .. } => (first.cols / 64, 48, 0),
            Format::Fp8 { .. } => (1, 0, 0),
        };
        let bits = 127 + run_rows * groups * width + 32;
        assert!(8 * kind.run_bytes(width) >= bits, "{what}");
        let codes = runs * (kind.run_bytes(width) + nested + book);
        assert!(8 * 128 * WARPS + codes <= slot, "{what}");
        // The scales of a run's NF4 codes: one for 256, from any of four on.
        assert!(
            nested == 0 || 4 * ((run_rows * groups).div_ceil(256) + 1 + 3) <= nested,
            "{what}"
        );
        let sums = 4 * 8 * (rows / 8).div_ceil(sms) * WARPS;
        let scratch = if *epilogue == Epilogue::Logits {
            2 * partial
        } else {
            partial
        };
        assert!(tokens * sums <= scratch, "{what}");
    }
}

/// The combinations that may leave a ring too few slots to tell them apart, of a wide MLP and with
/// a large vocabulary in the same format: f32 scales of groups of 32, and with two tokens, whose sums
/// of 128,256 logits take 94 KB, wide scales and NF4's tables.
fn widest(name: &str, format: Format, tokens: usize) -> bool {
    let widest_scales = matches!(
        format,
        Format::Int4 {
            format: ScaleFormat::F32,
            group: 32,
            ..
        }
    );
    name == "Llama-3-8B" && (widest_scales || tokens == 2)
}

#[test]
fn every_product_of_the_tested_models_fits() {
    // Hidden, heads, kv heads, head size, intermediate, vocabulary; projections fused or not.
    for (name, shape, fused) in [
        ("phi3-tiny", [256, 8, 8, 32, 768, 4096], true),
        ("SmolLM2-135M", [576, 9, 3, 64, 1536, 49152], false),
        ("Phi-3.5-mini", [3072, 32, 32, 96, 8192, 32064], true),
        ("Llama-3-8B", [4096, 32, 8, 128, 14336, 128_256], false),
    ] {
        let [hidden, heads, kv_heads, head, inner, vocab] = shape;
        let (q, kv) = (heads * head, kv_heads * head);
        let c = config(hidden, heads, kv_heads, head);
        for format in formats() {
            let of = |rows, cols| matrix(rows, cols, format);
            let (qkv, gate_up) = if fused {
                (vec![of(q + 2 * kv, hidden)], vec![of(2 * inner, hidden)])
            } else {
                (
                    vec![of(q, hidden), of(kv, hidden), of(kv, hidden)],
                    vec![of(inner, hidden); 2],
                )
            };
            let products = [
                (qkv, Epilogue::Store),
                (vec![of(hidden, q)], Epilogue::Residual),
                (gate_up, Epilogue::Swiglu),
                (vec![of(hidden, inner)], Epilogue::Residual),
                (vec![of(vocab, hidden)], Epilogue::Logits),
            ];
            let kinds: Vec<_> = products
                .iter()
                .map(|(m, e)| (Kind::new(m, *e), m[0].scale_defines().to_vec()))
                .collect();
            for (sms, tokens) in [(132, 1), (114, 1), (144, 1), (132, 2), (144, 2)] {
                let what = format!("{name}, {format:?}, {sms} SMs, {tokens} tokens");
                match Plan::of_rows(&c, &kinds, sms, tokens) {
                    Ok(plan) => check(&what, &plan, &products, (sms, tokens)),
                    // Its tiles' scales alone take as much room as their weights.
                    Err(error) if widest(name, format, tokens) => {
                        assert!(
                            error.to_string().contains("bytes of shared memory"),
                            "{error}"
                        );
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        }
    }
}

#[test]
fn scales_that_differ_are_decoded_at_run_time() {
    let c = config(256, 8, 8, 32);
    let [_, f32_scales, f16_scales, ..] = formats()[..] else {
        panic!("formats")
    };
    let width = |stored: &[Format]| {
        let kinds: Vec<_> = stored
            .iter()
            .map(|f| {
                let m = matrix(256, 256, *f);
                (Kind::new(&[m], Epilogue::Store), m.scale_defines().to_vec())
            })
            .collect();
        let plan = Plan::new(&c, &kinds, 132).unwrap();
        let found = plan.defines.iter().find(|d| d.0 == "SCALE_WIDTH");
        found.map(|d| d.1)
    };
    assert_eq!(width(&[f32_scales]), Some(32));
    assert_eq!(width(&[f16_scales, f16_scales]), Some(16));
    assert_eq!(width(&[f32_scales, f16_scales]), Some(0));
}

/// What `smq-convert --mbits auto` may choose: each product of a layer in bf16 and in int4, and
/// each width somewhere.
#[test]
fn storage_chosen_for_each_product_fits() {
    for (shape, fused) in [
        ([256, 8, 8, 32, 768, 4096], true),
        ([576, 9, 3, 64, 1536, 49152], false),
        ([3072, 32, 32, 96, 8192, 32064], true),
        ([4096, 32, 8, 128, 14336, 128_256], false),
    ] {
        let [hidden, heads, kv_heads, head, inner, vocab] = shape;
        let (q, kv) = (heads * head, kv_heads * head);
        let int4 = |mantissa_bits| Format::Int4 {
            scales: Span::at(0, 0),
            format: ScaleFormat::Mini(MiniFloat::new(5, mantissa_bits, 100).unwrap()),
            group: 128,
        };
        let mut products = vec![(vec![matrix(vocab, hidden, Format::Bf16)], Epilogue::Logits)];
        for format in [Format::Bf16].into_iter().chain((0..=10).map(int4)) {
            let of = |rows, cols| matrix(rows, cols, format);
            let (qkv, gate_up) = match fused {
                true => (vec![of(q + 2 * kv, hidden)], vec![of(2 * inner, hidden)]),
                false => (
                    vec![of(q, hidden), of(kv, hidden), of(kv, hidden)],
                    vec![of(inner, hidden); 2],
                ),
            };
            products.extend([
                (qkv, Epilogue::Store),
                (vec![of(hidden, q)], Epilogue::Residual),
                (gate_up, Epilogue::Swiglu),
                (vec![of(hidden, inner)], Epilogue::Residual),
            ]);
        }
        let kinds: Vec<_> = products
            .iter()
            .map(|(m, e)| (Kind::new(m, *e), m[0].scale_defines().to_vec()))
            .collect();
        let plan = Plan::new(&config(hidden, heads, kv_heads, head), &kinds, 132).unwrap();
        assert_eq!(plan.kinds.len(), 9);
        assert!(plan.defines.contains(&("SCALE_WIDTH", 0)));
        check(&format!("{shape:?}"), &plan, &products, (132, 1));
    }
}

#[test]
fn too_many_heads_or_kinds_are_refused_by_number() {
    let many_heads = config(8 * 256, 256, 256, 32);
    let error = Plan::new(&many_heads, &[], 132).unwrap_err().to_string();
    assert!(
        error.contains("256 key/value heads") && error.contains("132"),
        "{error}"
    );
    let kinds: Vec<_> = (1..=10)
        .map(|i| {
            let m = matrix(8 * i, 256, Format::Bf16);
            (Kind::new(&[m], Epilogue::Store), m.scale_defines().to_vec())
        })
        .collect();
    let error = Plan::new(&config(256, 8, 8, 32), &kinds, 132)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("10 different") && error.contains("up to 9"),
        "{error}"
    );
    // Each kind has code of its own, so columns may differ as kinds do.
    let kinds: Vec<_> = (1..=9)
        .map(|i| {
            let m = matrix(256, 64 * i, Format::Bf16);
            (Kind::new(&[m], Epilogue::Store), m.scale_defines().to_vec())
        })
        .collect();
    assert!(Plan::new(&config(256, 8, 8, 32), &kinds, 132).is_ok());
}

#[test]
fn a_product_that_the_kernel_does_not_know_has_no_number() {
    let kind = |rows, epilogue| {
        let m = matrix(rows, 256, Format::Bf16);
        (Kind::new(&[m], epilogue), m.scale_defines().to_vec())
    };
    let known = [
        kind(256, Epilogue::Store),
        kind(256, Epilogue::Residual),
        kind(512, Epilogue::Store),
    ];
    let plan = Plan::new(&config(256, 8, 8, 32), &known, 132).unwrap();
    for (number, (kind, _)) in known.iter().enumerate() {
        assert_eq!(plan.number_of(kind).unwrap(), number);
    }
    for (other, _) in [kind(768, Epilogue::Store), kind(512, Epilogue::Residual)] {
        let error = plan.number_of(&other).unwrap_err().to_string();
        assert!(error.contains("was not compiled for a product"), "{error}");
    }
}
