//! What `--target` takes of models of many families, and what it says of the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A checkpoint of bf16 zeros; `#` in a name stands for layers 0 and 1.
fn checkpoint(dir: &Path, tensors: &[(&str, &[usize])], config: Option<&str>) -> PathBuf {
    let to = dir.join("checkpoint");
    fs::create_dir_all(&to).unwrap();
    let mut named = Vec::new();
    for (name, shape) in tensors {
        let layers: &[&str] = if name.contains('#') {
            &["0", "1"]
        } else {
            &[""]
        };
        for layer in layers {
            let bytes = vec![0u8; 2 * shape.iter().product::<usize>()];
            named.push((name.replace('#', layer), shape.to_vec(), bytes));
        }
    }
    let views = named.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
        (name, view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(to.join("model.safetensors"), bytes).unwrap();
    if let Some(config) = config {
        fs::write(to.join("config.json"), config).unwrap();
    }
    to
}

/// Names of what becomes int4, and what is said of the target; the error where there is one.
fn planned(checkpoint: &Path, args: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-convert"));
    let output = command
        .args(["--dry-run", "-v"])
        .args(args)
        .arg(checkpoint)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (rest, rows) = text.split_once("\n\n").unwrap();
    let int4 = rows.lines().filter(|line| line.contains(" int4 "));
    let names = int4.map(|line| line.split_whitespace().next().unwrap().to_owned());
    let lines = rest.lines().skip(1).map(str::to_owned);
    Ok((names.collect(), lines.collect()))
}

const SQUARE: &[usize] = &[64, 64];
const EMBEDDING: (&str, &[usize]) = ("model.embed_tokens.weight", &[50, 64]);

#[test]
fn names_that_are_known_in_part() {
    let mixtral: &[(&str, &[usize])] = &[
        EMBEDDING,
        ("model.layers.#.self_attn.q_proj.weight", SQUARE),
        ("model.layers.#.block_sparse_moe.gate.weight", &[8, 64]),
        (
            "model.layers.#.block_sparse_moe.experts.0.w1.weight",
            SQUARE,
        ),
        (
            "model.layers.#.block_sparse_moe.experts.1.w1.weight",
            SQUARE,
        ),
    ];
    let phi2: &[(&str, &[usize])] = &[
        EMBEDDING,
        ("model.layers.#.self_attn.q_proj.weight", SQUARE),
        ("model.layers.#.self_attn.dense.weight", SQUARE),
        ("model.layers.#.mlp.fc1.weight", &[128, 64]),
        ("model.layers.#.input_layernorm.weight", &[64]),
    ];
    let deepseek: &[(&str, &[usize])] = &[
        EMBEDDING,
        ("model.layers.#.self_attn.q_a_proj.weight", SQUARE),
        ("model.layers.#.self_attn.kv_a_proj_with_mqa.weight", SQUARE),
        ("model.layers.#.mlp.gate.weight", &[8, 64]),
        ("model.layers.#.mlp.experts.3.up_proj.weight", SQUARE),
    ];
    for (tensors, share, unknown) in [
        (
            mixtral,
            "2 of 6 linear weights, 33.3 %",
            "model.layers.*.block_sparse_moe.experts.*.w1.weight (4 tensors)",
        ),
        (
            phi2,
            "2 of 6 linear weights, 25.0 %",
            "model.layers.*.mlp.fc1.weight (2 tensors), model.layers.*.self_attn.dense.weight (2 tensors)",
        ),
        (
            deepseek,
            "4 of 6 linear weights, 66.7 %",
            "model.layers.*.self_attn.kv_a_proj_with_mqa.weight (2 tensors)",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let source = checkpoint(dir.path(), tensors, None);
        let (names, lines) = planned(&source, &["--target", "all"]).unwrap();
        assert!(names.iter().all(|name| name.ends_with("_proj.weight")));
        let selected = format!("selected: {share} of their elements (--target all)");
        assert_eq!(lines[0], selected);
        let (warning, pattern) = lines[1]
            .split_once("; to take them too, pass --target '")
            .unwrap();
        let expected = "warning: --target all does not know these linear weights and leaves them as they are: ";
        assert_eq!(warning, format!("{expected}{unknown}"));
        // The pattern that is named takes everything, and nothing is left to warn of.
        let pattern = pattern.strip_suffix('\'').unwrap();
        let (names, lines) = planned(&source, &["--target", pattern]).unwrap();
        assert_eq!((names.len(), lines.len()), (6, 1));
        let all = "selected: 6 of 6 linear weights, 100.0 %";
        assert!(lines[0].starts_with(all), "{lines:?}");
        // The run itself says the same.
        let out = dir.path().join("out.smq");
        let output = Command::new(env!("CARGO_BIN_EXE_smq-convert"))
            .args(["--target", "all"])
            .args([&source, &out])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&selected) && text.contains(&format!("{expected}{unknown};")));
    }
    // Of DeepSeek's, mlp leaves attention out on purpose.
    let dir = TempDir::new().unwrap();
    let source = checkpoint(dir.path(), deepseek, None);
    let (names, lines) = planned(&source, &["--target", "mlp"]).unwrap();
    assert_eq!((names.len(), lines.len()), (2, 1));
}

#[test]
fn towers_and_stacks_of_experts_are_left_out_and_named() {
    let dir = TempDir::new().unwrap();
    let source = checkpoint(
        dir.path(),
        &[
            ("language_model.model.layers.#.mlp.gate_proj.weight", SQUARE),
            (
                "language_model.model.layers.#.self_attn.q_proj.weight",
                SQUARE,
            ),
            (
                "language_model.model.layers.#.mlp.experts.gate_up_proj",
                &[4, 64, 128],
            ),
            ("visual.blocks.#.mlp.gate_proj.weight", SQUARE),
            ("audio_tower.layers.#.self_attn.q_proj.weight", SQUARE),
            ("multi_modal_projector.linear_1.weight", SQUARE),
        ],
        None,
    );
    for (target, taken) in [("mlp", 2), ("all", 4)] {
        let (names, lines) = planned(&source, &["--target", target]).unwrap();
        assert_eq!(names.len(), taken);
        assert!(names.iter().all(|name| name.starts_with("language_model.")));
        let share = format!(
            "selected: {taken} of 6 linear weights, {:.1} % of their elements (--target {target})",
            100.0 * taken as f64 / 20.0
        );
        assert_eq!(
            lines,
            [
                share.as_str(),
                "warning: left as they are, since only matrices are quantized and these have three dimensions: language_model.model.layers.*.mlp.experts.gate_up_proj (2 tensors)",
                "note: left as they are, since they are of a vision or audio tower: audio_tower.layers.*.self_attn.q_proj.weight (2 tensors), multi_modal_projector.linear_1.weight, visual.blocks.*.mlp.gate_proj.weight (2 tensors)",
            ]
        );
    }
    // A pattern takes them, since it says so.
    let (names, _) = planned(&source, &["--target", "visual"]).unwrap();
    assert_eq!(names.len(), 2);
}

#[test]
fn a_pattern_may_take_an_embedding_only_by_its_full_name() {
    let tensors: &[(&str, &[usize])] = &[
        EMBEDDING,
        ("lm_head.weight", &[50, 64]),
        ("model.layers.#.self_attn.q_proj.weight", SQUARE),
        ("model.layers.#.self_attn.q_norm.weight", &[4, 16]),
        ("model.layers.#.mlp.gate.weight", &[8, 64]),
    ];
    let tied = r#"{"tie_word_embeddings": true}"#;
    let cases = [
        (".", None, "model.embed_tokens.weight", "an embedding"),
        ("embed", None, "model.embed_tokens.weight", "an embedding"),
        (
            "lm_head",
            Some(tied),
            "lm_head.weight",
            "a head that shares the embedding's weights",
        ),
        (
            "norm",
            None,
            "model.layers.0.self_attn.q_norm.weight",
            "a norm",
        ),
        ("mlp", None, "model.layers.0.mlp.gate.weight", ""), // the target of that name
        (
            r"mlp\.",
            None,
            "model.layers.0.mlp.gate.weight",
            "a router of experts",
        ),
    ];
    for (pattern, config, name, what) in cases {
        let dir = TempDir::new().unwrap();
        let source = checkpoint(dir.path(), tensors, config);
        let error = planned(&source, &["--target", pattern]).unwrap_err();
        let full = format!("^{}$", name.replace('.', r"\."));
        let expected = format!(
            "error: --target {pattern:?}: takes tensor {name:?} of {}, which is {what}; narrow the pattern, or name that tensor in full ('{full}')\n",
            source.join("model.safetensors").display()
        );
        match what {
            "" => assert!(error.contains("matches no 2-dimensional tensor"), "{error}"),
            _ => assert_eq!(error, expected),
        }
        for pattern in [name, full.as_str(), &format!("^(x|{name})$")] {
            let (names, _) = planned(&source, &["--target", pattern]).unwrap();
            assert_eq!(names, [name]);
        }
    }
    // A head of its own is a matrix like others.
    let dir = TempDir::new().unwrap();
    let source = checkpoint(dir.path(), tensors, None);
    let (names, lines) = planned(&source, &["--target", "^lm_head"]).unwrap();
    assert_eq!(names, ["lm_head.weight"]);
    assert_eq!(
        lines,
        [
            "selected: 0 of 2 linear weights, 0.0 % of their elements (--target ^lm_head), and lm_head.weight"
        ]
    );
    let error = planned(&source, &["--target", ""]).unwrap_err();
    assert!(
        error.contains("it is empty, which would match every tensor"),
        "{error}"
    );
    // Chosen storage is refused alike.
    let auto = ["--mbits", "auto", "--budget", "5", "--target", "."];
    let error = planned(&source, &auto).unwrap_err();
    assert!(error.contains("which is an embedding"), "{error}");
}
