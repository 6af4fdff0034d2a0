//! Every cell once, whatever interrupts the run.

use std::time::{Duration, Instant};

use super::*;

/// What the small contract asks for and the checkpoint can do, by kind of record.
fn expected() -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut cells = Vec::new();
    for config in ["C0", "C3", "C4", "C5-E5M5", "C6"] {
        for (prompt, output) in [(8, 2), (8, 5), (24, 2), (24, 5)] {
            cells.extend((1..=2).map(|r| format!("{config}/p{prompt}/o{output}/r{r}")));
        }
    }
    cells.extend(["C0", "C4"].map(|c| format!("{c}/p64/o4/r1")));
    let files = ["C0", "C3", "C4", "C6"]
        .map(|c| format!("{c}/file"))
        .to_vec();
    let mut errors = vec!["errors/exact".to_owned()];
    for rule in ["reference", "nearest", "search", "signed"] {
        errors.extend([0, 3, 5].map(|x| format!("errors/{rule}/e5m{x}")));
    }
    cells.sort();
    errors.sort();
    (cells, files, errors)
}

fn complete(out: &Path) {
    let lines = raw(out);
    let (cells, files, errors) = expected();
    assert_eq!(ids(&lines, "cell"), cells);
    assert_eq!(ids(&lines, "file"), files);
    assert_eq!(ids(&lines, "scale_errors"), errors);
    // No file is left behind, and nothing else made.
    let left: Vec<_> = std::fs::read_dir(out)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["raw"]);
}

#[test]
fn a_whole_run_then_nothing_is_left_to_do() {
    let dir = tempfile::tempdir().unwrap();
    succeed(matrix(dir.path(), &[]));
    complete(dir.path());
    let lines = raw(dir.path());
    let mut absent = ids(&lines, "absent");
    absent.dedup();
    let long = ["C0/p32768/o4", "C4/p32768/o4"].map(str::to_owned);
    let energy = ["C0", "C3", "C4", "C5-E5M5", "C6"].map(|c| format!("{c}/energy"));
    let mut known: Vec<_> = long.into_iter().chain(energy).collect();
    known.sort();
    assert_eq!(absent, known);
    for line in &lines {
        let e = &line["environment"];
        assert_eq!(e["contract_blake3"].as_str().unwrap().len(), 64, "{line}");
        assert!(
            e["kernels_blake3"]["decode.cu"].is_string() && e["commit"].is_string(),
            "{line}"
        );
        assert!(
            e["command"][0] == "smq-run" && e["machine"]["cores"].as_u64() > Some(0),
            "{line}"
        );
        assert!(e.get("gpu").is_none(), "no GPU ran this: {line}");
    }
    for cell in lines.iter().filter(|l| l["record"] == "cell") {
        let tokens = cell["token_ms"].as_array().unwrap();
        assert_eq!(
            tokens.len() as u64 + 1,
            cell["output_tokens"].as_u64().unwrap(),
            "{cell}"
        );
        let mean = tokens.iter().map(|t| t.as_f64().unwrap()).sum::<f64>() / tokens.len() as f64;
        assert!(
            (mean - cell["tpot_ms"]["mean"].as_f64().unwrap()).abs() < 1e-9 * mean,
            "{cell}"
        );
        assert!(cell["ttft_first_use_ms"].as_f64() > Some(0.0), "{cell}");
        for absent in [
            "gpu_before",
            "gpu_after",
            "device_memory_bytes",
            "rope_switch_ms",
        ] {
            assert!(cell.get(absent).is_none(), "{absent} was made up: {cell}");
        }
        assert!(cell["nvml_absent"].is_string(), "{cell}");
    }
    // Every cell says which file it ran from; C0 has none but the checkpoint.
    let line = |id: &str| lines.iter().find(|l| l["id"] == id).unwrap();
    assert!(line("C0/p8/o2/r1").get("index_blake3").is_none());
    let c4 = &line("C4/file")["index_blake3"];
    assert_eq!(c4.as_str().unwrap().len(), 64);
    assert!(
        ["C4/p8/o2/r1", "C5-E5M5/p24/o5/r2"]
            .iter()
            .all(|id| &line(id)["index_blake3"] == c4)
    );
    assert_ne!(&line("C3/p8/o2/r1")["index_blake3"], c4);
    // C4 and C5-E5M5 ran from one file, and the fresh processes say how to run them again.
    let command =
        |id: &str| lines.iter().find(|l| l["id"] == id).unwrap()["environment"]["command"].clone();
    assert_eq!(command("C4/p8/o2/r1")[2], command("C5-E5M5/p8/o2/r2")[2]);
    let before = raw_text(dir.path());
    let said = succeed(matrix(dir.path(), &[]));
    assert!(said.contains("0 lines added"), "{said}");
    assert_eq!(raw_text(dir.path()), before);
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    // Killed after some lines, several times over; then cut within a line, as a crash of the
    // machine would.
    for lines in [1, 9, 20] {
        let mut run = matrix(dir.path(), &[])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let path = dir.path().join("raw/matrix.jsonl");
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let so_far = std::fs::read_to_string(&path)
                .unwrap_or_default()
                .lines()
                .count();
            if so_far >= lines || run.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < deadline, "no progress");
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = run.kill();
        run.wait().unwrap();
    }
    let text = raw_text(dir.path());
    let cut = text.trim_end().len() - 10;
    std::fs::write(dir.path().join("raw/matrix.jsonl"), &text[..cut]).unwrap();
    succeed(matrix(dir.path(), &[]));
    complete(dir.path());
    let whole = text[..cut].rfind('\n').map_or(0, |i| i + 1);
    assert!(
        raw_text(dir.path()).starts_with(&text[..whole]),
        "older lines were changed"
    );
}

#[test]
fn a_smoke_run_grows_into_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    succeed(matrix(dir.path(), &["--only", "C3,C4", "--repeats", "1"]));
    let lines = raw(dir.path());
    assert_eq!(ids(&lines, "cell").len(), 2 * 4 + 1);
    assert_eq!(ids(&lines, "file"), ["C3/file", "C4/file"]);
    assert!(ids(&lines, "scale_errors").is_empty());
    succeed(matrix(dir.path(), &["--sections", "scale-errors"]));
    assert_eq!(ids(&raw(dir.path()), "scale_errors").len(), 13);
    let first = raw_text(dir.path());
    succeed(matrix(dir.path(), &[]));
    complete(dir.path());
    assert!(raw_text(dir.path()).starts_with(&first));
}
