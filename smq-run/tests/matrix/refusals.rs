//! What must not run, and what fails without ending the rest.

use super::*;

#[test]
fn an_unknown_config_is_named_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = fail(matrix(dir.path(), &["--only", "C3,C9"]));
    assert!(
        error.contains("there is no config \"C9\"")
            && error.contains("it has C0, C3, C4, C5-E5M5, C6"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn bad_contracts_and_models_are_errors_of_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    let text = std::fs::read_to_string(contract()).unwrap();
    std::fs::write(&bad, text.replace("repeats = 2", "repeats = -2")).unwrap();
    let out = dir.path().join("out");
    let error = fail(matrix_of(&bad, &model(), &out, &[]));
    assert!(
        error.contains("bad.toml: line ") && error.contains("-2"),
        "{error}"
    );
    let error = fail(matrix_of(&contract(), &dir.path().join("none"), &out, &[]));
    assert!(error.contains("is no checkpoint directory"), "{error}");
    assert!(!out.exists());
}

#[test]
fn results_of_another_model_are_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(matrix(&out, &["--only", "C0", "--repeats", "1"]));
    let before = raw_text(&out);
    let other = dir.path().join("other");
    copy_of_model(&other);
    // One weight near the end of a shard: the headers are the same.
    let shard = other.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let error = fail(matrix_of(&contract(), &other, &out, &[]));
    assert!(
        error.contains("was measured with model ") && error.contains("--allow-mixed"),
        "{error}"
    );
    assert_eq!(raw_text(&out), before);
    // A copy of the same model elsewhere is the same model.
    let same = dir.path().join("same");
    copy_of_model(&same);
    succeed(matrix_of(
        &contract(),
        &same,
        &out,
        &["--only", "C0", "--repeats", "1"],
    ));
    assert_eq!(raw_text(&out), before);
}

#[test]
fn results_of_another_contract_or_commit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    succeed(matrix(&out, &["--only", "C0", "--repeats", "1"]));
    let changed = dir.path().join("changed.toml");
    let text = std::fs::read_to_string(contract()).unwrap();
    std::fs::write(&changed, text.replace("seed = 42", "seed = 43")).unwrap();
    let error = fail(matrix_of(&changed, &model(), &out, &[]));
    assert!(error.contains("was measured with contract "), "{error}");
    let commit = raw(&out)[0]["environment"]["commit"]
        .as_str()
        .unwrap()
        .to_owned();
    let elsewhere =
        raw_text(&out).replace(&format!("\"commit\":\"{commit}\""), "\"commit\":\"abc\"");
    std::fs::write(out.join("raw/matrix.jsonl"), &elsewhere).unwrap();
    let error = fail(matrix(&out, &[]));
    assert!(
        error.contains("was measured with commit abc, this is "),
        "{error}"
    );
    assert_eq!(raw_text(&out), elsewhere);
    let said = succeed(matrix(&out, &["--only", "C0", "--allow-mixed"]));
    assert!(!said.contains(" 0 lines added"), "{said}");
    assert!(report(&out).status.success());
    let text = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        text.contains("more than one model, commit or contract"),
        "{text}"
    );
}

#[test]
fn a_model_that_does_not_run_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("model");
    copy_of_model(&other);
    let config = other.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = text.replace("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"");
    assert_ne!(text, changed);
    std::fs::write(&config, changed).unwrap();
    let out = dir.path().join("out");
    let error = fail(matrix_of(&contract(), &other, &out, &[]));
    assert!(error.contains("gelu") && !out.exists(), "{error}");
}

#[test]
fn processes_that_fail_are_absent_with_their_reason_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    // No GPU, on whatever machine this runs.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
        .args(["matrix", "--device", "cuda", "--config"])
        .arg(contract());
    command
        .arg("--model")
        .arg(model())
        .arg("--out")
        .arg(dir.path());
    let error = fail(command);
    assert!(
        error.contains("5 of the processes failed") || error.contains("7 of the processes failed"),
        "{error}"
    );
    let lines = raw(dir.path());
    assert!(ids(&lines, "cell").is_empty());
    let absent = ids(&lines, "absent");
    for config in ["C0", "C3", "C4", "C5-E5M5", "C6"] {
        assert!(absent.iter().any(|id| id == config), "{config}: {absent:?}");
        let line = lines.iter().find(|l| l["id"] == config).unwrap();
        let reason = line["reason"].as_str().unwrap();
        assert!(
            reason.contains("NVIDIA") || reason.contains("GPU"),
            "{reason}"
        );
    }
    assert_eq!(
        ids(&lines, "scale_errors").len(),
        13,
        "the rest was measured"
    );
    assert!(!dir.path().join("work").exists(), "no file is left behind");
    // Once it can run, it does.
    succeed(matrix(dir.path(), &[]));
    assert_eq!(ids(&raw(dir.path()), "cell").len(), 42);
    assert!(report(dir.path()).status.success());
    let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(!text.contains("| `C3` "), "no longer absent: {text}");
}

#[test]
fn formats_that_a_build_lacks_are_absent_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(contract()).unwrap();
    let more = "\n[[config]]\nid = \"C1\"\nscheme = \"fp8-e4m3\"\ntarget = \"mlp\"\n\
                \n[[config]]\nid = \"C2\"\nscheme = \"nf4-dq\"\ntarget = \"mlp\"\n";
    let path = dir.path().join("more.toml");
    std::fs::write(&path, text + more).unwrap();
    let out = dir.path().join("out");
    // Whichever of them this build has, the others run.
    let _ = matrix_of(&path, &model(), &out, &[]).output().unwrap();
    let lines = raw(&out);
    let cells = ids(&lines, "cell");
    for config in ["C1", "C2"] {
        let measured = cells.iter().any(|id| id.starts_with(&format!("{config}/")));
        let absent = lines
            .iter()
            .find(|l| l["id"] == config && l["record"] == "absent");
        let reason = absent.map(|l| l["reason"].as_str().unwrap());
        assert!(
            measured || reason.is_some_and(|r| !r.is_empty()),
            "{config} is neither measured nor absent"
        );
    }
    assert_eq!(cells.iter().filter(|id| id.starts_with("C6/")).count(), 8);
}
