//! The report: every figure from a raw line, nothing made up.

use std::collections::BTreeMap;

use super::*;

/// A CSV file's rows by column name.
fn csv(out: &Path, name: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(out.join("summary").join(name)).unwrap();
    reader.deserialize().map(Result::unwrap).collect()
}

fn text(out: &Path) -> String {
    std::fs::read_to_string(out.join("report.md")).unwrap()
}

/// The lines of a run on the CPU.
fn measured(out: &Path) {
    succeed(matrix(out, &[]));
}

#[test]
fn the_summary_is_that_of_the_raw_lines() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    measured(out);
    let done = report(out);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let lines = raw(out);
    let by_id: BTreeMap<_, _> = lines
        .iter()
        .map(|l| (l["id"].as_str().unwrap(), l))
        .collect();
    let rows = csv(out, "cells.csv");
    let of = |metric: &str, cell: &Value| match metric {
        "ttft" => cell["ttft_ms"].as_f64(),
        "tpot" => cell["tpot_ms"]["mean"].as_f64(),
        "tpot_p95" => cell["tpot_ms"]["p95"].as_f64(),
        "load" => cell["load_ms"].as_f64(),
        "peak_rss" => cell["peak_rss_bytes"].as_f64(),
        "output_rate" => cell["output_tokens_per_s"].as_f64(),
        _ => None,
    };
    let mut checked = 0;
    for row in rows.iter().filter(|r| !r["mean"].is_empty()) {
        let ids: Vec<_> = row["raw_ids"].split(' ').collect();
        assert_eq!(ids.len().to_string(), row["n"], "{row:?}");
        let values: Option<Vec<f64>> = ids.iter().map(|id| of(&row["metric"], by_id[id])).collect();
        let Some(values) = values else { continue };
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let close = |text: &str, value: f64| {
            (text.parse::<f64>().unwrap() - value).abs() <= 1e-9 * value.abs()
        };
        assert!(close(&row["mean"], mean), "{row:?}: {mean}");
        if ids.len() == 1 {
            assert!(
                row["sd"].is_empty() && row["ci95_half_width"].is_empty(),
                "{row:?}"
            );
        } else {
            let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            assert!(close(&row["sd"], sd), "{row:?}: {sd}");
            // Two repeats: t(0.975, 1) = 12.7062047.
            let half: f64 = row["ci95_half_width"].parse().unwrap();
            assert!(
                (half - 12.706_204_7 * sd / n.sqrt()).abs() <= 1e-6 * half,
                "{row:?}"
            );
        }
        checked += 1;
    }
    assert_eq!(checked, (5 * 4 + 2) * 6);
    assert!(
        rows.iter().all(|r| r["metric"] != "device_memory"),
        "absent stays absent"
    );
    let absent = rows.iter().filter(|r| !r["absent"].is_empty());
    assert_eq!(
        absent.map(|r| r["raw_ids"].as_str()).collect::<Vec<_>>(),
        ["C0/p32768/o4", "C4/p32768/o4"]
    );
    let energy = csv(out, "energy.csv");
    assert_eq!(energy.len(), 5);
    assert!(
        energy
            .iter()
            .all(|r| r["joules_per_token_with_prefill"].is_empty()),
        "{energy:?}"
    );
    assert_eq!(csv(out, "scale_errors.csv").len(), 13);
    assert_eq!(csv(out, "files.csv").len(), 5);
}

#[test]
fn the_report_names_what_it_has_and_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    measured(out);
    assert!(report(out).status.success());
    let text = text(out);
    for heading in [
        "## Method",
        "## Setup",
        "## Speed",
        "## Long contexts",
        "## Memory and size",
        "## Energy",
        "## What rounding the scales costs",
        "## Quality",
        "## Absent",
        "## Threats to validity",
        "## How to reproduce",
    ] {
        assert!(text.contains(&format!("\n{heading}\n")), "{heading}");
    }
    assert!(text.contains("No roofline: these cells did not run on a GPU."));
    assert!(text.contains("Absent: the model ran on the CPU, and NVML measures GPUs."));
    assert!(
        text.contains("So the claim holds of the squared error"),
        "{text}"
    );
    assert!(
        text.contains("model.layers.2.mlp.down_proj.weight"),
        "the worst tensor"
    );
    // The bundled weights: E5M3 is enough over all tensors, not in each.
    assert!(
        text.contains("`e5m3` does over all tensors together and `e5m5` in each of them."),
        "{text}"
    );
    assert!(text.contains("| `C4/p24/o5/r*`"));
    // Every plot it shows is there and draws something; no other is left.
    let mut shown: Vec<_> = text
        .split("](plots/")
        .skip(1)
        .map(|t| t.split(')').next().unwrap())
        .collect();
    shown.sort_unstable();
    let mut files: Vec<_> = std::fs::read_dir(out.join("plots"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort_unstable();
    assert_eq!(shown, files);
    assert_eq!(files.len(), 7, "{files:?}");
    for name in files {
        let svg = std::fs::read_to_string(out.join("plots").join(name)).unwrap();
        assert!(
            svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.contains("<circle"),
            "{svg}"
        );
    }
    // The same lines give the same report.
    assert!(report(out).status.success());
    assert_eq!(self::text(out), text);
}

#[test]
fn a_gpus_figures_reach_tables_and_plots() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    measured(out);
    let state = serde_json::json!({"sm_mhz": 1965, "temperature_c": 50, "watts": 300.0, "throttle_reasons": ["SW_POWER_CAP"]});
    let window = serde_json::json!({"runs": 10, "seconds": 10.0, "samples": [[0.0, 400.0], [10.0, 400.0]],
        "trapezoid_joules": 4000.0, "counter_joules": 4100.0});
    let mut text = String::new();
    for mut line in raw(out) {
        if line["record"] == "cell" {
            line["device"] = "cuda".into();
            line["device_memory_bytes"] = 5_250_000_000_u64.into();
            line["gpu_after"] = state.clone();
            line["flags"] = serde_json::json!(["throttled"]);
            line.as_object_mut().unwrap().remove("nvml_absent");
        }
        if line["record"] == "absent" && line["id"] == "C4/energy" {
            let joules = serde_json::json!({"with_prefill": 0.4321, "without_prefill": 0.4123});
            let energy = serde_json::json!({"record": "energy", "config": "C4", "prompt_tokens": 8, "output_tokens": 4, "sample_ms": 10,
                "idle_watts": 71.5, "generations": window, "prompts": window,
                "joules_per_token": {"trapezoid": joules, "counter": joules}, "gpu_before": state, "gpu_after": state});
            let object = line.as_object_mut().unwrap();
            object.remove("reason");
            object.extend(energy.as_object().unwrap().clone());
        }
        text += &format!("{line}\n");
    }
    std::fs::write(out.join("raw/matrix.jsonl"), text).unwrap();
    std::fs::write(out.join("raw/kernels.json"), "{\"read_gb_per_s\": 2000.0}").unwrap();
    let done = report(out);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let text = self::text(out);
    assert!(
        text.contains("2,000 GB/s (raw/kernels.json, measured by smq-run kernels)"),
        "{text}"
    );
    // 5,447,680 bytes at 2000 GB/s: 2.72 us.
    assert!(
        text.contains("|            5,447,680 |     0.003 |"),
        "{text}"
    );
    assert!(
        text.contains("throttled 2 of 2") && text.contains("42 are flagged throttled, 0 hot"),
        "{text}"
    );
    assert!(
        text.contains("5.250") && text.contains("0.4321") && text.contains("71.5"),
        "{text}"
    );
    for plot in ["roofline", "energy"] {
        assert!(out.join(format!("plots/{plot}.svg")).exists(), "{plot}");
    }
    let energy = csv(out, "energy.csv");
    assert_eq!(
        energy
            .iter()
            .filter(|r| r["joules_per_token_without_prefill"] == "0.4123")
            .count(),
        2
    );
    // A rate that is no number is an error, not a guess.
    std::fs::write(out.join("raw/kernels.json"), "{}").unwrap();
    assert!(error_of(&report(out)).contains("kernels.json: holds no read_gb_per_s"));
}

#[test]
fn a_part_alone_is_told_without_empty_tables() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(out, &["--sections", "scale-errors"]));
    assert!(report(out).status.success());
    let text = text(out);
    assert_eq!(text.matches("Not measured.").count(), 3, "{text}");
    assert!(text.contains("is not known: no file with E5M5"), "{text}");
    assert!(
        text.contains("`e5m3` does over all tensors together"),
        "{text}"
    );
    let plots = std::fs::read_dir(out.join("plots")).unwrap().count();
    assert_eq!(plots, 2);
}

#[test]
fn what_was_not_run_yet_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(
        out,
        &["--only", "C0", "--repeats", "1", "--sections", "cells"],
    ));
    assert!(report(out).status.success());
    let text = text(out);
    let absent = text.split("## Absent").nth(1).unwrap();
    let absent = absent.split("\n## ").next().unwrap();
    for id in ["`C0/energy`", "`C4/energy`"] {
        assert!(absent.contains(id), "{id}: {absent}");
    }
    assert!(absent.contains("not run yet"), "{absent}");
    let measured = text.matches("`C0/p").count() - absent.matches("`C0/p").count();
    assert!(measured > 0 && absent.contains("`C4/p"), "{absent}");
}

#[test]
fn quality_tables_are_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    succeed(matrix(out, &["--only", "C0", "--repeats", "1"]));
    std::fs::create_dir(out.join("quality")).unwrap();
    let table = r#"{"title": "LAMBADA", "note": "Synthetic.", "columns": ["config", "accuracy"], "rows": [["C0", 0.5], ["C4", null]]}"#;
    std::fs::write(out.join("quality/lambada.json"), table).unwrap();
    std::fs::write(out.join("quality/items.json"), "[1, 2]").unwrap();
    std::fs::write(out.join("quality/README.md"), "# Not this\n").unwrap();
    std::fs::write(
        out.join("quality/suite.md"),
        "# A suite\n\nText.\n\n## A task\n",
    )
    .unwrap();
    assert!(report(out).status.success());
    let text = text(out);
    assert!(
        text.contains("### LAMBADA") && text.contains("From `quality/lambada.json`."),
        "{text}"
    );
    let page = "### A suite\n\nFrom `quality/suite.md`.\n\nText.\n\n#### A task\n";
    assert!(text.contains(page) && !text.contains("Not this"), "{text}");
    assert!(
        text.contains("| C0     |      0.5 |") && text.contains("| C4     |          |"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_told_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    assert!(error_of(&report(out)).contains("matrix.jsonl: cannot read it"));
    succeed(matrix(out, &["--only", "C0", "--repeats", "1"]));
    std::fs::write(out.join("report.md"), "mine\n").unwrap();
    assert!(error_of(&report(out)).contains("was not written by this program"));
    assert_eq!(text(out), "mine\n");
    std::fs::remove_file(out.join("report.md")).unwrap();
    let mut other = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    other
        .arg("report")
        .arg(out)
        .arg("--config")
        .arg(root().join("spec/experiment.toml"));
    assert!(fail(other).contains("was measured by another contract"));
}

#[test]
fn figures_that_cannot_have_been_measured_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    measured(out);
    let path = out.join("raw/matrix.jsonl");
    let good = std::fs::read_to_string(&path).unwrap();
    let changed = |line: &str| {
        let mut json: Value = serde_json::from_str(line).unwrap();
        let has = json.get("ttft_ms").is_some();
        if has {
            json["ttft_ms"] = (-5).into();
        }
        format!("{json}\n")
    };
    let bad: String = good.lines().map(changed).collect();
    assert!(bad.contains("\"ttft_ms\":-5"));
    std::fs::write(&path, bad).unwrap();
    let done = report(out);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(
        said.contains("has a ttft of -5, which cannot have been measured"),
        "{said}"
    );
}
