//! Where results may go, and what is left where they cannot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A model and a text that may be lost.
fn copies(dir: &TempDir) -> (PathBuf, PathBuf) {
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(fixtures().join("phi3-tiny")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let text = dir.path().join("text.txt");
    fs::copy(fixtures().join("sample.txt"), &text).unwrap();
    (model, text)
}

fn smq_run(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    command.args(["--device", "cpu"]).args(args);
    command
}

fn ppl(model: &Path, text: &Path, json: &Path) -> Output {
    let mut command = smq_run(&["eval", "ppl", "--window", "32", "--max-tokens", "64"]);
    command
        .arg(model)
        .arg("--text")
        .arg(text)
        .arg(format!("--json={}", json.display()));
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn results_replace_no_input_and_nothing_but_a_regular_file() {
    let dir = TempDir::new().unwrap();
    let (model, text) = copies(&dir);
    let at = |name: &str| dir.path().join(name);
    fs::hard_link(model.join("config.json"), at("linked")).unwrap();
    fs::write(model.join("vocab.json"), "{}").unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("fifo"))
            .status()
            .unwrap()
            .success()
    );
    let kept = [
        model.join("config.json"),
        model.join("model-00001-of-00003.safetensors"),
        model.join("model.safetensors.index.json"),
        model.join("tokenizer.json"),
        model.join("vocab.json"),
        text.clone(),
        at("linked"),
    ];
    for path in &kept {
        let before = fs::read(path).unwrap();
        let output = ppl(&model, &text, path);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("is an input") && output.stdout.is_empty(),
            "{said}"
        );
        assert_eq!(fs::read(path).unwrap(), before);
    }
    for (name, problem) in [
        ("dangling", "a symbolic link that leads nowhere"),
        ("directory", "a directory"),
        ("fifo", "a FIFO"),
        ("none/x.json", "does not exist"),
    ] {
        let output = ppl(&model, &text, &at(name));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        // Found before the text is scored: there is no result that is lost.
        assert!(said.contains(problem) && output.stdout.is_empty(), "{said}");
    }
    assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn results_go_through_devices_and_links_and_keep_permissions() {
    let dir = TempDir::new().unwrap();
    let (model, text) = copies(&dir);
    let output = ppl(&model, &text, "/dev/null".as_ref());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    for stdout in ["-", "/dev/stdout"] {
        let output = ppl(&model, &text, stdout.as_ref());
        assert!(output.status.success(), "{}", stderr(&output));
        let _: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    }
    let (file, link) = (dir.path().join("file.json"), dir.path().join("link.json"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&file, &link).unwrap();
    assert!(ppl(&model, &text, &link).status.success());
    let _: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert!(link.is_symlink());
}

/// An interrupt takes the variants away and says so by its code; after SIGKILL the next run does,
/// and a run that goes on keeps its own.
#[test]
fn an_interrupted_suite_leaves_no_variants() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let spawn = |only: &str| {
        let mut command = smq_run(&["eval", "suite", "--window", "64", "--only", only, "--data"]);
        command.arg(fixtures().join("eval")).arg("--out").arg(&out);
        command.arg(fixtures().join("phi3-tiny"));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let variants = || {
        let names = fs::read_dir(&out).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with(".variants."))
            .collect::<Vec<_>>()
    };
    let interrupted = |signal: &str, only: &str, before: usize| {
        let mut child = spawn(only);
        while variants().len() == before || child.try_wait().unwrap().is_some() {
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        }
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        child.wait().unwrap()
    };
    let status = interrupted("-TERM", "mlp-e5m5", 0);
    assert_eq!((status.code(), variants()), (Some(130), vec![]));
    let status = interrupted("-KILL", "mlp-e5m5", 0);
    assert_eq!((status.code(), variants().len()), (None, 1));
    let live = smq_format::Scratch::beside(&out.join("variants")).unwrap();
    assert_eq!(variants().len(), 1);
    let output = spawn("mlp-e5m5").wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let name = live
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(variants(), [name]);
}

/// Numbers at the ends of their types.
#[test]
fn absurd_numbers_are_refused_or_obeyed() {
    let model = fixtures().join("phi3-tiny");
    let model = model.to_str().unwrap();
    let max = u64::MAX.to_string();
    let generate = ["generate", model, "--prompt", "a", "--max-new-tokens", "2"];
    let bench = [
        "bench",
        model,
        "--output-tokens",
        "1",
        "--prompt-tokens",
        "1",
    ];
    let many = ["bench", model, "--sequences", "2"];
    let guesses = ["bench", model, "--guesses"];
    let cases: [(&[&str], &[&str], &str); 10] = [
        (&bench, &["--repeats", &max], "at most 1000000"),
        (&bench, &["--warmup", &max], "at most 1000000"),
        (&many, &["--warmup", &max], "at most 1000000"),
        (&many, &["--prompt-tokens", &max], "longest context"),
        (&guesses, &["--repeats", &max], "at most 1000000"),
        (&guesses, &["--output-tokens", &max], "longest context"),
        (
            &["bench", model],
            &["--prompt-tokens", &max],
            "longest context",
        ),
        (&generate, &["--temperature", "1e-300"], ""),
        (&generate, &["--temperature", "1", "--top-p", "1e-300"], ""),
        (&generate, &["--temperature", "1e300", "--top-k", "1"], ""),
    ];
    for (command, options, problem) in cases {
        let output = smq_run(&[command, options].concat()).output().unwrap();
        let said = stderr(&output);
        assert!(
            output.status.code().is_some_and(|code| code <= 1),
            "{options:?}: {said}"
        );
        assert!(
            said.contains(problem) && !said.contains("panicked"),
            "{said}"
        );
        assert!(!said.contains("stack backtrace"), "{said}");
        let is_refused = !output.status.success();
        assert!(problem.is_empty() || is_refused, "{said}");
    }
}

#[test]
fn full_outputs_are_errors_and_no_panics() {
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let dir = TempDir::new().unwrap();
    let model = fixtures().join("phi3-tiny");
    let model = model.to_str().unwrap();
    let text = fixtures().join("sample.txt");
    let out = dir.path().join("demo");
    let demo = [
        "demo",
        "--checkpoint",
        model,
        "--out",
        out.to_str().unwrap(),
        "--text",
    ];
    let demo = [&demo[..], &[text.to_str().unwrap()]].concat();
    let generate = ["generate", model, "--prompt", "a", "--max-new-tokens", "2"];
    for (args, silent) in [(&demo[..], false), (&generate, false), (&generate, true)] {
        let mut command = smq_run(args);
        command.stdout(full());
        if silent {
            command.stderr(full());
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(silent || said.contains("No space left"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn what_never_ends_is_not_read_to_its_end() {
    let model = fixtures().join("phi3-tiny");
    let mut command = smq_run(&["eval", "ppl", "--text", "/dev/zero"]);
    let said = stderr(&command.arg(&model).output().unwrap());
    assert!(
        said.contains("/dev/zero holds more than 268435456 bytes"),
        "{said}"
    );
    let dir = TempDir::new().unwrap();
    let (model, text) = copies(&dir);
    let huge = fs::File::create(model.join("generation_config.json")).unwrap();
    huge.set_len(3 << 30).unwrap();
    let output = ppl(&model, &text, "-".as_ref());
    let said = stderr(&output);
    assert!(
        said.contains("over the limit of 33554432 of generation_config.json"),
        "{said}"
    );
}

#[test]
fn a_quantized_base_is_refused() {
    let dir = TempDir::new().unwrap();
    let model = fixtures().join("phi3-tiny");
    let file = dir.path().join("a.smq");
    let options = smq_convert::ConvertOptions {
        target: smq_convert::Target::Mlp,
        quantize: smq_convert::Method::Nf4,
        overwrite: false,
        jobs: 0,
    };
    let checkpoint = smq_convert::Checkpoint::open(&model).unwrap();
    smq_convert::convert(&checkpoint, &file, &options, &|_| true).unwrap();
    let mut command = smq_run(&["eval", "kl", "--text"]);
    command
        .arg(fixtures().join("sample.txt"))
        .arg(&model)
        .arg("--base")
        .arg(&file);
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("a.smq is quantized itself (nf4"), "{said}");
}

/// What a file says of itself reaches a terminal as text.
#[test]
fn control_characters_of_files_are_escaped() {
    let dir = TempDir::new().unwrap();
    let (model, text) = copies(&dir);
    let path = model.join("config.json");
    let good = fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
    config["hidden_act"] = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}".into();
    fs::write(&path, config.to_string()).unwrap();
    let output = ppl(&model, &text, "-".as_ref());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("hidden_act is"), "{said}");
    assert!(
        said.contains(r"\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}"),
        "{said}"
    );
    assert!(
        !said.contains(|c: char| c.is_control() && c != '\n'),
        "{said:?}"
    );
    fs::write(&path, good).unwrap();
    let template = r#"{{ raise_exception('\x1b[2J' ~ '\x07no') }}"#;
    fs::write(model.join("chat_template.jinja"), template).unwrap();
    let mut command = smq_run(&["generate", "--prompt", "a"]);
    let output = command.arg(&model).output().unwrap();
    let said = stderr(&output);
    assert!(
        !output.status.success() && said.contains(r"\u{1b}[2J\u{7}no"),
        "{said}"
    );
}
