//! Logits, teacher-forced: the tokens are given, whatever the engine would choose.

use smq_convert::{LevelChoice, Method, ScaleChoice};
use smq_engine::Engine;
use smq_engine::cuda::{CudaEngine, int4_widened_from};
use smq_model::{ModelConfig, Source};

use crate::models::{self, Model, any_tokens, lut4_method, sample_tokens};
use crate::reference::{Case, Path, Reference};
use crate::{Outcome, none, same_bits};

/// LongRoPE's long factors begin after so many tokens of the fixture.
const ORIGINAL: usize = 512;
/// Decode steps after a prompt.
const STEPS: usize = 8;
pub(crate) const DECODED: usize = 64;

pub(crate) fn unquantized() -> Outcome {
    none(of_fixture("C0", &Model::fixture(), &LENGTHS, None))
}

pub(crate) fn quantized(scales: ScaleChoice) -> Outcome {
    let mut failures = Vec::new();
    for target in ["all", "mlp"] {
        let model = Model::fixture().quantized(scales, target);
        let name = format!("{} {target}", scales);
        failures.extend(of_fixture(&name, &model, &LENGTHS, Some(128)));
    }
    none(failures)
}

/// Prompts round NF4's levels to bf16, long ones its weights.
pub(crate) fn nf4() -> Outcome {
    let mut failures = Vec::new();
    for target in ["all", "mlp", models::WITH_HEAD] {
        let model = Model::fixture().quantized_as(Method::Nf4, target);
        let name = format!("NF4 {target}");
        failures.extend(of_fixture_as(
            &name,
            &model,
            &LENGTHS,
            |_| true,
            Path::Decode,
        ));
    }
    none(failures)
}

/// Learned books, of which some are shifted, and NF4's, which are not; every kind of scales, a
/// head, and smaller groups.
pub(crate) fn lut4() -> Outcome {
    let (mini, learned) = (ScaleChoice::e5, LevelChoice::Learned);
    let mut failures = Vec::new();
    for (scales, group, levels, target) in [
        (mini(3), 128, learned, "all"),
        (mini(5), 128, LevelChoice::Nf4, "mlp"),
        (ScaleChoice::F16, 128, learned, models::WITH_HEAD),
        (ScaleChoice::F32, 64, LevelChoice::Nf4, "all"),
        (mini(5), 64, learned, models::WITH_HEAD),
        (mini(3), 32, learned, "all"),
    ] {
        let method = lut4_method(scales, group, levels);
        let model = Model::fixture().quantized_as(method, target);
        let name = format!("lut4 {levels} {scales} {target}, groups of {group}");
        failures.extend(of_fixture(&name, &model, &LENGTHS, Some(group)));
    }
    none(failures)
}

/// Projections that lie apart, each with a book of its own; rows that end in half a group; several
/// pieces of a ring.
pub(crate) fn lut4_of_other_shapes() -> Outcome {
    let mut failures = Vec::new();
    for group in [128, 64, 32] {
        for (what, config, widened) in [
            ("Llama", models::llama(), true),
            ("heads of 96", models::phi(384, 4, 4), false),
            ("wide MLP", wide(), false),
        ] {
            let method = lut4_method(models::E5M5, group, LevelChoice::Learned);
            let model = Model::synthetic(&config).quantized_as(method, "all");
            let name = format!("lut4 {what}, groups of {group}");
            failures.extend(of_synthetic(&name, &model.open(), widened));
        }
    }
    none(failures)
}

/// Rounded activations that lie near a tie round another way on either side, which the bf16 twin's
/// distance covers.
pub(crate) fn fp8() -> Outcome {
    let mut failures = Vec::new();
    for target in ["all", "mlp"] {
        let model = Model::fixture().quantized_as(Method::Fp8, target);
        let name = format!("FP8 {target}");
        let decode = Path::Fp8Decode;
        failures.extend(of_fixture_as(&name, &model, &LENGTHS, |_| false, decode));
    }
    none(failures)
}

pub(crate) fn int4_head() -> Outcome {
    let model = Model::fixture().quantized(models::E5M5, models::WITH_HEAD);
    none(of_fixture("int4 head", &model, &[1, 128], Some(128)))
}

/// Every kind of scales, an int4 head, rows that end in half a group of 128 and those that take
/// several pieces of a ring.
pub(crate) fn groups_of(group: usize) -> Outcome {
    let mut failures = Vec::new();
    let mini = ScaleChoice::e5;
    for (scales, target) in [
        (ScaleChoice::F32, "all"),
        (ScaleChoice::F16, "mlp"),
        (mini(2), "all"),
        (models::E5M5, models::WITH_HEAD),
    ] {
        let model = Model::fixture().quantized_in_groups(scales, target, group);
        let name = format!("{scales} {target}, groups of {group}");
        failures.extend(of_fixture(&name, &model, &LENGTHS, Some(group)));
    }
    for (what, config, widened) in [
        ("Llama", models::llama(), true),
        ("heads of 96", models::phi(384, 4, 4), false),
        ("wide MLP", wide(), false),
    ] {
        let model = Model::synthetic(&config).quantized_in_groups(models::E5M5, "all", group);
        let name = format!("{what}, groups of {group}");
        failures.extend(of_synthetic(&name, &model.open(), widened));
    }
    none(failures)
}

/// One tile of tokens and its neighbours, several tiles, many rows, more than one chunk.
const LENGTHS: [usize; 7] = [1, 127, 128, 129, 700, 1100, 2300];

/// `group`: of int4 weights or code books.
fn of_fixture(name: &str, model: &Model, prompts: &[usize], group: Option<usize>) -> Vec<String> {
    let c = ModelConfig::of(&model.open()).unwrap();
    // Some product's weights are widened from there on.
    let widened = |m| {
        let of = |rows| group.is_some_and(|group| m >= int4_widened_from(rows, group));
        of(c.hidden) || of(2 * c.intermediate)
    };
    of_fixture_as(name, model, prompts, widened, Path::Decode)
}

fn of_fixture_as(
    name: &str,
    model: &Model,
    prompts: &[usize],
    widened: impl Fn(usize) -> bool,
    decode: Path,
) -> Vec<String> {
    let source = model.open();
    let growth = ORIGINAL - 7..=ORIGINAL + 8;
    let tokens = sample_tokens(prompts.iter().max().unwrap().max(growth.end()) + STEPS);
    let lengths = prompts
        .iter()
        .flat_map(|p| *p..=p + STEPS)
        .chain(1..=DECODED)
        .chain(growth);
    let reference = Reference::new(&source, &tokens, lengths);
    let mut engine = CudaEngine::load(&source, None).unwrap();
    let mut failures = of_prompts(
        name,
        &mut engine,
        &reference,
        &tokens,
        (prompts, STEPS),
        widened,
    );
    failures.extend(decoding(name, &mut engine, &reference, &tokens, decode));
    failures.extend(growing(name, &mut engine, &reference, &tokens));
    failures
}

/// Each prompt, then `steps` further tokens one by one.
pub(crate) fn of_prompts(
    name: &str,
    engine: &mut CudaEngine,
    reference: &Reference,
    tokens: &[u32],
    (prompts, steps): (&[usize], usize),
    widened: impl Fn(usize) -> bool,
) -> Vec<String> {
    let case = |&prompt: &usize| {
        let path = match widened(prompt) {
            true => Path::WidenedPrompt,
            false => Path::Prompt,
        };
        let mut case = Case::new(format!("{name}, prompt {prompt}"), reference, path);
        engine.start(prompt + steps).unwrap();
        for len in prompt..=prompt + steps {
            let new = if len == prompt { 0 } else { len - 1 };
            let step = engine.extend(&tokens[new..len]).unwrap();
            assert!(
                !step.rope_switched || new > 0,
                "no switch: nothing was computed before"
            );
            case.add(len, step.logits);
        }
        case.failure()
    };
    prompts.iter().filter_map(case).collect()
}

/// Compares the logits of decoding, from one token on.
pub(crate) fn decoding(
    name: &str,
    engine: &mut CudaEngine,
    reference: &Reference,
    tokens: &[u32],
    path: Path,
) -> Option<String> {
    let mut case = Case::new(format!("{name}, decode only"), reference, path);
    engine.start(DECODED).unwrap();
    for len in 1..=DECODED {
        let step = engine.extend(&tokens[len - 1..len]).unwrap();
        if len > 1 {
            case.add(len, step.logits);
        }
    }
    case.failure()
}

/// Token by token past the original context; a second time the bits are the same.
fn growing(
    name: &str,
    engine: &mut CudaEngine,
    reference: &Reference,
    tokens: &[u32],
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut first: Vec<Vec<f32>> = Vec::new();
    let mut case = Case::new(
        format!("{name}, across the switch"),
        reference,
        Path::Prompt,
    );
    for again in [false, true] {
        engine.start(ORIGINAL + 8).unwrap();
        for (i, len) in (ORIGINAL - 7..=ORIGINAL + 8).enumerate() {
            let new = if i == 0 { 0 } else { len - 1 };
            let step = engine.extend(&tokens[new..len]).unwrap();
            if step.rope_switched != (len == ORIGINAL + 1) {
                failures.push(format!(
                    "{name}: rope_switched is {} at {len}",
                    step.rope_switched
                ));
            }
            if !again {
                case.add(len, step.logits);
                first.push(step.logits.to_vec());
            } else if !same_bits(&first[i], step.logits) {
                failures.push(format!("{name}: a second time, other bits at {len}"));
            }
        }
    }
    failures.extend(case.failure());
    failures
}

/// Models without trained weights: a few short prompts.
fn of_synthetic(name: &str, source: &Source, widened: bool) -> Vec<String> {
    of_synthetic_as(name, source, widened, Path::Decode)
}

fn of_synthetic_as(name: &str, source: &Source, widened: bool, decode: Path) -> Vec<String> {
    const PROMPTS: [usize; 4] = [1, 5, 64, 130];
    let tokens = any_tokens(130 + STEPS, 1000);
    let all = (&PROMPTS[..], STEPS);
    of_all(name, source, None, &tokens, all, widened, decode)
}

/// Prompts with steps after each, then token by token, on an engine for `max_tokens`.
pub(crate) fn of_all(
    name: &str,
    source: &Source,
    max_tokens: Option<usize>,
    tokens: &[u32],
    (prompts, steps): (&[usize], usize),
    widened: bool,
    decode: Path,
) -> Vec<String> {
    let lengths = prompts
        .iter()
        .flat_map(|p| *p..=p + steps)
        .chain(1..=DECODED);
    let reference = Reference::new(source, tokens, lengths);
    let mut engine = CudaEngine::load(source, max_tokens).unwrap();
    let mut failures = of_prompts(
        name,
        &mut engine,
        &reference,
        tokens,
        (prompts, steps),
        |_| widened,
    );
    failures.extend(decoding(name, &mut engine, &reference, tokens, decode));
    failures
}

pub(crate) fn llama() -> Outcome {
    let model = Model::synthetic(&models::llama());
    none(of_synthetic("Llama", &model.open(), false))
}

/// Projections that lie apart are widened at any length.
pub(crate) fn llama_int4() -> Outcome {
    let model = Model::synthetic(&models::llama()).quantized(models::E5M5, "all");
    none(of_synthetic("Llama int4", &model.open(), true))
}

/// Rows that end within a line of 128 bytes, in one slot of the ring and in two. What follows them
/// there is other layers' weights, where not all are FP8.
pub(crate) fn llama_fp8() -> Outcome {
    let mut config = models::llama();
    config["intermediate_size"] = 1568.into();
    let model = Model::synthetic(&config);
    let mut failures = Vec::new();
    for target in ["all", "mlp"] {
        let fp8 = model.quantized_as(Method::Fp8, target);
        let name = format!("Llama FP8 {target}");
        let source = fp8.open();
        failures.extend(of_synthetic_as(&name, &source, false, Path::Fp8Decode));
    }
    none(failures)
}

/// Three queries to a key, a rotation of 48 of 64 elements, a window shorter than the prompt, and
/// LongRoPE.
pub(crate) fn grouped_partial_window() -> Outcome {
    let mut config = models::phi(384, 6, 2);
    config["partial_rotary_factor"] = 0.75.into();
    config["sliding_window"] = 50.into();
    config["original_max_position_embeddings"] = 132.into();
    let factors = |step: f32| (0..24).map(|i| 1.0 + step * i as f32).collect::<Vec<_>>();
    config["rope_scaling"] = serde_json::json!({
        "type": "longrope", "short_factor": factors(0.01), "long_factor": factors(0.2),
    });
    let model = Model::synthetic(&config);
    let mut failures = of_synthetic("grouped", &model.open(), false);
    let int4 = model.quantized(ScaleChoice::F16, "all");
    failures.extend(of_synthetic("grouped int4", &int4.open(), false));
    none(failures)
}

pub(crate) fn heads_of_96() -> Outcome {
    let model = Model::synthetic(&models::phi(384, 4, 4)).quantized(models::E5M5, "all");
    none(of_synthetic("heads of 96", &model.open(), false))
}

pub(crate) fn heads_of_128() -> Outcome {
    let mut config = models::phi(512, 4, 1);
    config["tie_word_embeddings"] = true.into();
    let model = Model::synthetic(&config).quantized(ScaleChoice::F32, "all");
    none(of_synthetic("heads of 128", &model.open(), false))
}

/// Columns of Llama-3-8B's down projection: a row takes several pieces of a ring.
fn wide() -> serde_json::Value {
    let mut config = models::phi(256, 8, 2);
    config["intermediate_size"] = 14336.into();
    config["num_hidden_layers"] = 1.into();
    config
}

pub(crate) fn wide_mlp() -> Outcome {
    let model = Model::synthetic(&wide());
    let mut failures = of_synthetic("wide MLP", &model.open(), false);
    let int4 = model.quantized(models::E5M5, "all");
    failures.extend(of_synthetic("wide MLP int4", &int4.open(), false));
    none(failures)
}

/// Rows of which four warps have no equal shares: 10 lines of 128 bytes in one slot of the ring (a
/// hidden size of 2560), 14 in two (3584) and 38 in four (9728), and 7 (1792). Nor have a GPU's
/// blocks equal shares of these hidden sizes' tiles.
pub(crate) fn uneven_rows() -> Outcome {
    let sized = |hidden: usize, heads, kv_heads, intermediate: usize| {
        let mut config = models::phi(hidden, heads, kv_heads);
        config["intermediate_size"] = intermediate.into();
        config["num_hidden_layers"] = 1.into();
        Model::synthetic(&config)
    };
    let mut failures = Vec::new();
    for (what, model) in [
        ("2560 and 9728 columns", sized(2560, 20, 5, 9728)),
        ("3584 and 1792 columns", sized(3584, 28, 4, 1792)),
    ] {
        failures.extend(of_synthetic(&format!("{what}, bf16"), &model.open(), false));
        let lut4 = lut4_method(models::E5M5, 128, LevelChoice::Learned);
        for (scheme, quantized, widened, decode) in [
            (
                "int4",
                model.quantized(models::E5M5, "all"),
                false,
                Path::Decode,
            ),
            (
                "NF4",
                model.quantized_as(Method::Nf4, "all"),
                true,
                Path::Decode,
            ),
            ("lut4", model.quantized_as(lut4, "all"), false, Path::Decode),
            (
                "FP8",
                model.quantized_as(Method::Fp8, "all"),
                false,
                Path::Fp8Decode,
            ),
        ] {
            let name = format!("{what}, {scheme}");
            failures.extend(of_synthetic_as(&name, &quantized.open(), widened, decode));
        }
    }
    none(failures)
}
