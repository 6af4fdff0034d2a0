//! The online half on the bundled checkpoint: servers, clients, and what the report makes of it.

use super::*;

/// `smq-run matrix --online` on the CPU, into `out`.
fn online(out: &Path, extra: &[&str]) -> Command {
    let file = root().join("tests/fixtures/online-small.toml");
    let mut command = matrix(out, &[&format!("--online={}", file.display())]);
    command.args(["--threads", "2"]).args(extra);
    command
}

fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("raw/online.jsonl")).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn all_ids() -> Vec<String> {
    let mut ids = Vec::new();
    for config in ["C0", "C4"] {
        for clients in [1, 3] {
            ids.extend((1..=2).map(|r| format!("{config}/online/c{clients}/r{r}")));
        }
    }
    ids
}

#[test]
fn every_level_is_measured_once_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    // A smoke run that grows into the whole.
    succeed(online(out, &["--only", "C4", "--repeats", "1"]));
    let ids_of = |lines: &[Value]| ids(lines, "online");
    assert_eq!(ids_of(&lines(out)), ["C4/online/c1/r1", "C4/online/c3/r1"]);
    let first = std::fs::read_to_string(out.join("raw/online.jsonl")).unwrap();
    succeed(online(out, &[]));
    let text = std::fs::read_to_string(out.join("raw/online.jsonl")).unwrap();
    assert!(text.starts_with(&first));
    assert_eq!(ids_of(&lines(out)), all_ids());
    let said = succeed(online(out, &[]));
    assert!(said.contains("0 lines added"), "{said}");
    // No file is left behind.
    let left: Vec<_> = std::fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["raw"]);

    for line in lines(out) {
        let figures = &line["figures"];
        let number = |name: &str| figures[name].as_f64().unwrap();
        assert_eq!(
            (number("completed"), number("failed")),
            (4.0, 0.0),
            "{line}"
        );
        assert_eq!(number("total_input_tokens"), 4.0 * 24.0, "{line}");
        assert_eq!(number("total_output_tokens"), 4.0 * 5.0, "{line}");
        for name in [
            "median_ttft_ms",
            "p95_ttft_ms",
            "median_tpot_ms",
            "p95_tpot_ms",
        ] {
            assert!(number(name) > 0.0, "{name}: {line}");
        }
        let e = &line["environment"];
        for hash in ["contract_blake3", "online_blake3"] {
            assert_eq!(e[hash].as_str().unwrap().len(), 64, "{line}");
        }
        assert!(e["commit"].is_string() && e["machine"]["cores"].as_u64() > Some(0));
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().unwrap().iter();
            words.map(|w| w.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(words(&e["command"])[..2], ["smq-run", "load"], "{line}");
        assert!(
            words(&line["server"]).contains(&"serve".to_owned()),
            "{line}"
        );
        assert_eq!(line["device"], "cpu");
        assert!(line.get("gpu_before").is_none(), "no GPU ran this: {line}");
        let has_file = line.get("index_blake3").is_some();
        assert_eq!(has_file, line["config"] == "C4", "{line}");
    }

    // The online half alone is a report, and stands beside the rest of it.
    for rest in [false, true] {
        if rest {
            let only = ["--only", "C0", "--repeats", "1", "--sections", "cells"];
            succeed(matrix(out, &only));
        }
        let done = report(out);
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{stderr}");
        let text = std::fs::read_to_string(out.join("report.md")).unwrap();
        let section = text.split("\n## Many clients\n").nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        assert!(section.contains("**Not comparable"), "{section}");
        assert!(
            section.contains("4 requests of 24 prompt and 5 output tokens"),
            "{section}"
        );
        for row in ["| `C0/online/c1/r*`", "| `C4/online/c3/r*`"] {
            assert!(section.contains(row), "{row}: {section}");
        }
        assert!(section.contains("](plots/online.svg)"), "{section}");
        assert!(out.join("plots/online.svg").exists());
        let mut csv = csv::Reader::from_path(out.join("summary/online.csv")).unwrap();
        let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        let tpot = rows.iter().filter(|r| &r[2] == "median_tpot_ms");
        assert_eq!(tpot.count(), 4);
        assert!(rows.iter().all(|r| &r[3] == "2"), "{rows:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let error = fail(online(out, &["--only", "C6"]));
    assert!(error.contains("--only: \"C6\" is not served by"), "{error}");
    let error = fail(matrix(out, &["--online=nowhere.toml"]));
    assert!(error.contains("nowhere.toml: "), "{error}");
    let text = std::fs::read_to_string(root().join("tests/fixtures/online-small.toml")).unwrap();
    let long = out.join("long.toml");
    std::fs::write(
        &long,
        text.replace("prompt_tokens = 24", "prompt_tokens = 8190"),
    )
    .unwrap();
    let error = fail(matrix(out, &[&format!("--online={}", long.display())]));
    assert!(
        error.contains("exceed the model's longest context of 8192"),
        "{error}"
    );
    let mut both = matrix(out, &["--online", "--sections", "cells"]);
    assert_eq!(both.output().unwrap().status.code(), Some(2));
}

/// A server that cannot be started is named with its own reason, and is tried again.
#[test]
fn a_server_that_fails_is_absent() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_of_model(&model);
    std::fs::write(model.join("generation_config.json"), "{").unwrap();
    let out = dir.path().join("out");
    let file = root().join("tests/fixtures/online-small.toml");
    let online = format!("--online={}", file.display());
    let extra = [online.as_str(), "--only", "C0", "--repeats", "1"];
    let error = fail(matrix_of(&contract(), &model, &out, &extra));
    assert!(error.contains("C0: server 1: "), "{error}");
    assert!(error.contains("generation_config.json"), "{error}");
    assert_eq!(ids(&lines(&out), "absent"), ["C0/online/r1"]);
    std::fs::remove_file(model.join("generation_config.json")).unwrap();
    succeed(matrix_of(&contract(), &model, &out, &extra));
    assert_eq!(ids(&lines(&out), "online").len(), 2);
}
