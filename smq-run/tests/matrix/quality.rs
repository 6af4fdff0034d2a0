//! Quality, long contexts and the page of findings, from made-up figures: golden, and absent where
//! they are absent.

use serde_json::json;

use super::*;

/// A suite of variants with `(name, bits, mean KL, lambada's accuracy less C0's 0.5)`.
fn suite(model: &str, variants: &[(&str, f64, f64, Option<f64>)]) -> Value {
    let score = |value: f64, stderr: f64| json!({"value": value, "stderr": stderr});
    let tasks = variants.iter().any(|v| v.3.is_some());
    let file = json!({"name": "t.jsonl", "blake3": "00", "items": 100});
    let mut all = vec![
        json!({"name": "C0", "config": "C0", "file_bytes": 1000, "tasks": match tasks {
            true => json!({"lambada": {"acc": {"value": 0.5, "stderr": 0.05, "items": 100}}}),
            false => json!({}),
        }}),
    ];
    for (name, bits, kl, delta) in variants {
        let (of_groups, group) = match name.strip_suffix("-g64") {
            Some(rest) => (rest, Some(64)),
            None => (*name, None),
        };
        let parts: Vec<_> = of_groups.split('-').collect();
        let mut v = json!({"name": name, "target": parts[0], "scales": parts[1], "file_bytes": 300,
            "bits_per_weight": bits, "mean_rel_mse": kl / 10.0, "tasks": {},
            "kl": {"mean_kl": score(*kl, 0.001), "median_kl": kl / 2.0, "p99_kl": 5.0 * kl, "max_kl": 9.0 * kl,
                "top1_agreement": score(0.8, 0.01), "perplexity": 11.0, "base_perplexity": 10.0,
                "perplexity_ratio": score(1.1, 0.01), "tokens_scored": 5110, "windows": 10, "window": 512, "protocol": ""}});
        if parts[1] != "auto" {
            v["rule"] = (*parts.get(2).unwrap_or(&"reference")).into();
        }
        if let Some(group) = group {
            v["group"] = group.into();
        }
        if *name == "mlp-e5m5" {
            v["config"] = "C4".into();
        }
        if let Some(delta) = delta {
            let acc = json!({"value": 0.5 + delta, "stderr": 0.05, "items": 100,
                "delta": {"mean": delta, "ci95": [delta - 0.02, delta + 0.02]},
                "mcnemar": {"only_base": 9, "only_this": 1, "p_value": 0.0005}});
            v["tasks"] = json!({"lambada": {"acc": acc}});
            v["mean_relative_drop"] = (-delta / 0.5).into();
            v["accepted"] = (-delta / 0.5 <= 0.03).into();
        }
        all.push(v);
    }
    json!({"parameters": {"producer": "smq-run 0.1.0", "model": model, "model_blake3": {"config.json": model}, "device": "cpu",
            "tasks": if tasks { json!({"lambada": file}) } else { json!({}) }, "max_new_tokens": 8,
            "text": {"name": "text.txt", "blake3": "00"}, "window": 512, "text_tokens": null},
        "accepted_relative_drop": 0.03, "variants": all})
}

const UNIFORM: [(&str, f64, f64, Option<f64>); 5] = [
    ("mlp-f32", 4.25, 0.2, None),
    ("mlp-e5m5", 4.086, 0.2001, Some(-0.01)),
    ("mlp-e5m3", 4.071, 0.2002, None),
    ("mlp-e5m0", 4.047, 0.4, Some(-0.2)),
    ("mlp-e5m2-signed", 4.063, 0.15, None),
];

fn sensitivity() -> Value {
    let point = |i: usize, error: f64, kl: f64| {
        json!({"name": format!("model.layers.{i}.mlp.down_proj.weight"), "weights": 10, "relative_error": error / 100.0,
            "squared_error": error, "mean_kl": {"value": kl, "stderr": 0.001}, "p99_kl": kl, "loss_delta_nats": kl,
            "perplexity_ratio": {"value": 1.0 + kl, "stderr": 0.001}})
    };
    json!({"model": "m", "device": "cpu", "text": "text.txt", "tokens_scored": 511, "window": 512, "target": "all",
        "unit": "projection", "scales": "e5m5", "rule": "reference",
        "points": [point(0, 1.0, 0.01), point(1, 2.0, 0.03), point(2, 3.0, 0.02)],
        "rank_correlation": {"relative_error ~ mean_kl": 0.5, "squared_error ~ mean_kl": 0.5}})
}

fn put(out: &Path, name: &str, value: &Value) {
    std::fs::create_dir_all(out.join("quality")).unwrap();
    std::fs::write(out.join("quality").join(name), value.to_string()).unwrap();
}

fn page(out: &Path, name: &str) -> String {
    let done = report(out);
    let stderr = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{stderr}");
    std::fs::read_to_string(out.join(name)).unwrap()
}

/// Timed cells, long contexts included, with made-up figures in place of this machine's; energy of
/// C0 and C4 alone.
fn made_up(out: &Path) {
    succeed(matrix(out, &[]));
    let order = ["C0", "C3", "C4", "C5-E5M5", "C6"];
    let state =
        json!({"sm_mhz": 1965, "temperature_c": 50, "watts": 300.0, "throttle_reasons": []});
    let window = json!({"runs": 10, "seconds": 10.0, "samples": [[0.0, 400.0], [10.0, 400.0]],
        "trapezoid_joules": 4000.0, "counter_joules": 4100.0});
    let mut text = String::new();
    for mut line in raw(out) {
        let config = line["id"]
            .as_str()
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        let place = order.iter().position(|c| *c == config);
        if line["record"] == "cell" {
            let prompt = line["prompt_tokens"].as_f64().unwrap();
            let ms = (5.0 - place.unwrap() as f64) * (1.0 + prompt / 64.0);
            line["device"] = "cuda".into();
            line["ttft_ms"] = (2.0 * prompt).into();
            line["tpot_ms"] = json!({"mean": ms, "p50": ms, "p95": ms});
            line["device_memory_bytes"] = ((10.0 + prompt - place.unwrap() as f64) * 1e9).into();
            line["device_memory_bytes"] =
                (line["device_memory_bytes"].as_f64().unwrap() as u64).into();
            line.as_object_mut().unwrap().remove("nvml_absent");
        }
        if line["record"] == "absent"
            && ["C0/energy", "C4/energy"].contains(&line["id"].as_str().unwrap())
        {
            let joules = (4.0 - place.unwrap() as f64) / 4.0;
            let joules = json!({"with_prefill": joules, "without_prefill": joules / 2.0});
            let energy = json!({"record": "energy", "config": config, "prompt_tokens": 8, "output_tokens": 4, "sample_ms": 10,
                "generations": window, "prompts": window, "joules_per_token": {"trapezoid": joules, "counter": joules},
                "gpu_before": state, "gpu_after": state});
            let object = line.as_object_mut().unwrap();
            object.remove("reason");
            object.extend(energy.as_object().unwrap().clone());
        }
        text += &format!("{line}\n");
    }
    std::fs::write(out.join("raw/matrix.jsonl"), text).unwrap();
}

#[test]
fn findings_are_golden() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    made_up(out);
    let mut variants = UNIFORM.to_vec();
    variants.push(("mlp-auto-4.1", 4.099, 0.14, Some(0.01)));
    variants.push(("mlp-auto-4.05", 4.049, 0.5, None));
    put(out, "suite-m.json", &suite("m", &variants));
    put(out, "sensitivity-m.json", &sensitivity());
    put(out, "notes.json", &json!({"m": "Made up."}));
    let findings = page(out, "findings.md");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix/findings.golden.md");
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        findings == expected,
        "not {}:\n{findings}",
        golden.display()
    );
}

/// What is recommended by its divergence is told beside what its rule costs on tasks.
#[test]
fn tasks_that_contradict_the_divergence_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    made_up(out);
    let found = |signed: f64| {
        let variants = [
            ("mlp-f32", 4.25, 0.2, Some(-0.005)),
            ("mlp-e5m2", 4.063, 0.2001, Some(-0.02)),
            ("mlp-e5m2-signed", 4.063, 0.15, Some(signed)),
        ];
        put(out, "suite-m.json", &suite("m", &variants));
        let findings = page(out, "findings.md");
        let drop = format!(
            "Mean drops of int4 `e5m2`: mlp {:.1} % with the recommended rule, 4.0 with the published one, 1.0 with exact scales.",
            -signed / 0.5 * 100.0
        );
        assert!(findings.contains(&drop), "{drop}: {findings}");
        findings.contains("Tasks contradict the KL divergence here")
    };
    assert!(found(-0.05));
    assert!(!found(-0.01));
}

#[test]
fn long_contexts_and_missing_energy_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    made_up(out);
    let text = page(out, "report.md");
    let section = |name: &str| {
        let rest = text.split(&format!("\n## {name}\n")).nth(1).unwrap();
        rest.split("\n## ").next().unwrap().to_owned()
    };
    let long = section("Long contexts");
    assert!(long.contains("(plots/long_context.svg)"), "{long}");
    // C0 after 64 tokens: 5 ms (1 + 64 / 64), and 10 + 64 GB.
    let row = long.lines().find(|l| l.contains("`C0/p64/o4/r*`")).unwrap();
    assert!(
        row.contains(" 10.000 ") && row.contains(" 74.000 "),
        "{row}"
    );
    let svg = std::fs::read_to_string(out.join("plots/long_context.svg")).unwrap();
    // Only the configs of the long contexts are on its axis.
    for (name, there) in [("C0", true), ("C4", true), ("C3", false), ("C6", false)] {
        assert_eq!(svg.contains(&format!("\n{name}\n")), there, "{name}: {svg}");
    }
    let energy = section("Energy");
    assert!(
        energy.contains("`C0/energy`") && energy.contains("`C4/energy`"),
        "{energy}"
    );
    let absent = energy.lines().find(|l| l.starts_with("Absent: ")).unwrap();
    for id in ["C3 (", "C5-E5M5 (", "C6 ("] {
        assert!(absent.contains(id), "{absent}");
    }
    assert!(section("Memory and size").contains("and the long contexts"));
}

#[test]
fn suites_and_sensitivities_are_found_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(out, &["--only", "C0", "--repeats", "1"]));
    put(out, "suite-m.json", &suite("m", &UNIFORM));
    // The same text and fewer of the variants: its distances are told once.
    put(out, "suite-part.json", &suite("m", &UNIFORM[1..2]));
    put(
        out,
        "suite-other.json",
        &suite("other", &[("all-e5m5", 4.086, 0.3, None)]),
    );
    put(out, "sensitivity-m.json", &sensitivity());
    std::fs::write(out.join("quality/suite-m.md"), "# Told twice\n").unwrap();
    let text = page(out, "report.md");
    let plots = |text: &str| -> Vec<String> {
        let quality = text.split("\n## Quality\n").nth(1).unwrap();
        let names = quality.split("](plots/").skip(1);
        names
            .map(|t| t.split(')').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        plots(&text),
        [
            "tasks-suite-m.svg",
            "kl-suite-m.svg",
            "kl-suite-other.svg",
            "tasks-suite-part.svg",
            "sensitivity-m.svg"
        ]
    );
    assert!(
        !text.contains("Told twice") && text.contains(" p<0.001"),
        "{text}"
    );
    assert!(
        text.contains("Its distances from C0 are those of `quality/suite-m.json`."),
        "{text}"
    );
    assert!(text.contains("### other: distance from C0"), "{text}");
    assert!(
        text.contains("Spearman's rank correlation is +0.50"),
        "{text}"
    );
    for name in plots(&text) {
        let svg = std::fs::read_to_string(out.join("plots").join(&name)).unwrap();
        assert!(
            svg.starts_with("<svg xmlns=") && svg.contains("<circle") | svg.contains("<polygon"),
            "{name}"
        );
    }
    // No auto, no table or plot of it.
    assert!(!text.contains("auto / uniform") && !out.join("plots/auto-suite-m.svg").exists());
    let mut variants = UNIFORM.to_vec();
    variants.push(("mlp-auto-4.1", 4.099, 0.14, None));
    put(out, "suite-m.json", &suite("m", &variants));
    let text = page(out, "report.md");
    let row = text
        .lines()
        .find(|l| l.starts_with("| mlp-auto-4.1 ") && l.contains("e5m2-signed"))
        .unwrap();
    assert!(
        row.contains(" 0.933 |") && row.contains(" better |"),
        "{row}"
    );
    assert!(plots(&text).contains(&"auto-suite-m.svg".to_owned()));
    // What says to be a suite and is none is an error.
    std::fs::write(out.join("quality/suite-x.json"), "[]").unwrap();
    assert!(error_of(&report(out)).contains("suite-x.json: is not what its name says"));
}

#[test]
fn smaller_groups_stand_apart() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(out, &["--sections", "scale-errors"]));
    let mut variants = UNIFORM.to_vec();
    variants.extend([
        ("mlp-e5m5-g64", 4.172, 0.12, None),
        ("mlp-e5m2-signed-g64", 4.125, 0.1, None),
        ("mlp-nf4", 4.127, 0.11, None),
    ]);
    put(out, "suite-m.json", &suite("m", &variants));
    let findings = page(out, "findings.md");
    // A width in groups of 64 stands for none in groups of 128.
    for text in [
        "| nearest in larger groups |",
        "| `mlp-e5m2-signed` | 0.1500 ± 0.0010 |",
        "| `mlp-e5m2-signed-g64` (4.125 bits) | 0.1000 ± 0.0010 |",
        "its mean KL divergence is -27 % against the best int4's",
        "and +10 % against the nearest int4's in groups of 64 in 1.",
    ] {
        let words = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&findings).contains(text), "{text}: {findings}");
    }
    let plot = std::fs::read_to_string(out.join("plots/kl-suite-m.svg")).unwrap();
    // It has a place of its own on the axis, beside that of its width in groups of 128.
    assert!(
        plot.contains("groups of 64") && plot.contains("4.125 bits"),
        "{plot}"
    );
}

#[test]
fn findings_without_figures_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(out, &["--sections", "scale-errors"]));
    let findings = page(out, "findings.md");
    for text in [
        "Nothing can be recommended",
        "is not known of",
        "Speed, memory and energy were not measured.",
        "What int4 costs on tasks was not measured.",
    ] {
        assert!(findings.contains(text), "{text}: {findings}");
    }
    assert!(
        !findings.contains("absent") && !findings.contains("NaN") && !findings.contains("inf"),
        "{findings}"
    );
    std::fs::write(out.join("findings.md"), "mine\n").unwrap();
    assert!(error_of(&report(out)).contains("findings.md: was not written by this program"));
}
