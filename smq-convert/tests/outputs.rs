//! Nothing is lost and nothing is left: directories that are replaced, inputs that are written to
//! or cut off, interrupts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_smq-convert"))
}

fn convert(args: &[&Path]) -> Output {
    program().args(args).output().unwrap()
}

fn spawn(args: &[&Path]) -> Child {
    let mut command = program();
    command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A copy of the fixture, whose files may be changed.
fn checkpoint(dir: &TempDir, name: &str) -> PathBuf {
    let copy = dir.path().join(name);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(fixture()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// Two .smq files whose exports differ in every weight.
fn two_files(dir: &TempDir) -> [PathBuf; 2] {
    ["0", "5"].map(|mbits| {
        let path = dir.path().join(format!("{mbits}.smq"));
        let mut command = program();
        command
            .args(["--target", "all", "--mbits", mbits])
            .arg(fixture());
        assert!(command.arg(&path).output().unwrap().status.success());
        path
    })
}

fn export_args<'a>(file: &'a Path, out: &'a Path) -> [&'a Path; 5] {
    let (to, form, force) = ("--to".as_ref(), "safetensors".as_ref(), "--force".as_ref());
    [to, form, force, file, out]
}

/// Name and contents of everything in a directory.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn hidden(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_directory_in_the_way_of_a_file_costs_nothing() {
    let dir = TempDir::new().unwrap();
    let [old, new] = two_files(&dir);
    let out = dir.path().join("out");
    assert!(convert(&export_args(&old, &out)).status.success());
    fs::remove_file(out.join("tokenizer.json")).unwrap();
    fs::create_dir(out.join("tokenizer.json")).unwrap();
    let before = contents(&out);
    let output = convert(&export_args(&new, &out));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("out/tokenizer.json: is a directory with the name"),
        "{}",
        stderr(&output)
    );
    assert_eq!(contents(&out), before);
    assert!(out.join("tokenizer.json").is_dir());
    assert_eq!(hidden(dir.path()), [""; 0]);
}

/// Kills an export at many points: the directory is the old one or the new one, and what is
/// somebody else's is in it. The next run removes what the killed ones left.
#[test]
fn a_killed_export_leaves_the_old_directory_or_the_new_one() {
    const POINTS: u32 = 40;
    let dir = TempDir::new().unwrap();
    let files = two_files(&dir);
    let whole = [0, 1].map(|i: usize| {
        let out = dir.path().join(format!("whole-{i}"));
        let started = Instant::now();
        assert!(convert(&export_args(&files[i], &out)).status.success());
        (contents(&out), started.elapsed())
    });
    let span = whole[0].1 + whole[1].1;
    let out = dir.path().join("out");
    assert!(convert(&export_args(&files[0], &out)).status.success());
    fs::create_dir(out.join("mine")).unwrap();
    fs::write(out.join("mine/notes.txt"), "mine").unwrap();
    let (mut old, mut new) = (0, 0);
    for point in 0..POINTS {
        let now = contents(&out);
        let other = usize::from(now == whole[0].0);
        let mut child = spawn(&export_args(&files[other], &out));
        std::thread::sleep(span * point / POINTS);
        child.kill().unwrap();
        child.wait().unwrap();
        match contents(&out) {
            found if found == now => old += 1,
            found if found == whole[other].0 => new += 1,
            found => {
                let names: Vec<_> = found.into_iter().map(|file| file.0).collect();
                panic!("a mixture at point {point}: {names:?}");
            }
        }
        assert_eq!(fs::read(out.join("mine/notes.txt")).unwrap(), b"mine");
    }
    assert!(old > 0 && new > 0, "{old} {new}");
    assert!(convert(&export_args(&files[0], &out)).status.success());
    assert_eq!(hidden(dir.path()), [""; 0]);
}

#[test]
fn two_exports_into_one_directory_leave_one_of_them_whole() {
    let dir = TempDir::new().unwrap();
    let files = two_files(&dir);
    let out = dir.path().join("out");
    let whole = [0, 1].map(|i: usize| {
        assert!(convert(&export_args(&files[i], &out)).status.success());
        contents(&out)
    });
    for _ in 0..6 {
        let children = [0, 1].map(|i: usize| spawn(&export_args(&files[i], &out)));
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        }
        assert!(whole.contains(&contents(&out)), "a mixture");
        assert_eq!(hidden(dir.path()), [""; 0]);
    }
}

/// A directory that cannot be renamed is filled where it holds no checkpoint, and left alone where
/// it does.
#[test]
fn the_current_directory_is_filled_and_never_replaced() {
    let dir = TempDir::new().unwrap();
    let [old, new] = two_files(&dir);
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let run = |file: &Path| {
        let mut command = program();
        command
            .args(export_args(file, ".".as_ref()))
            .current_dir(&out);
        command.output().unwrap()
    };
    assert!(run(&old).status.success());
    let before = contents(&out);
    assert!(before.iter().any(|file| file.0 == "config.json"));
    let output = run(&new);
    assert!(
        stderr(&output).contains("cannot be replaced as a whole, because it is the current"),
        "{}",
        stderr(&output)
    );
    assert_eq!((output.status.code(), contents(&out)), (Some(1), before));
    assert_eq!(hidden(&out), [""; 0]);
}

#[test]
fn a_replaced_directory_and_file_leave_their_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let dir = TempDir::new().unwrap();
    let [old, new] = two_files(&dir);
    let out = dir.path().join("out");
    assert!(convert(&export_args(&old, &out)).status.success());
    let plain = dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    assert_eq!(mode(&out), mode(&plain));
    set(&out, 0o751);
    assert!(convert(&export_args(&new, &out)).status.success());
    assert_eq!(mode(&out), 0o751);
    set(&old, 0o640);
    assert!(
        convert(&["--force".as_ref(), &fixture(), &old])
            .status
            .success()
    );
    assert_eq!(mode(&old), 0o640);
}

/// By its own name, by a second name of the file, by a link: no input is replaced.
#[test]
fn no_input_is_a_target() {
    let dir = TempDir::new().unwrap();
    let source = checkpoint(&dir, "source");
    fs::create_dir(source.join("additional_chat_templates")).unwrap();
    for name in [
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "vocab.json",
        "other.safetensors",
    ] {
        fs::write(source.join(name), "{}").unwrap();
    }
    let text = dir.path().join("text.txt");
    fs::copy(fixture().join("../sample.txt"), &text).unwrap();
    let linked = dir.path().join("linked.smq");
    fs::hard_link(source.join("config.json"), &linked).unwrap();
    let mut targets: Vec<_> = [
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00003.safetensors",
        "other.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    ]
    .map(|name| source.join(name))
    .to_vec();
    targets.extend([linked, text.clone()]);
    for target in targets {
        let before = fs::read(&target).unwrap();
        let mut command = program();
        command.args(["--force".as_ref(), source.as_os_str(), target.as_os_str()]);
        command.args(["--measure-kl".as_ref(), text.as_os_str()]);
        let output = command.output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{}", target.display());
        assert!(
            said.contains("is a file of the checkpoint") || said.contains("is an input"),
            "{said}"
        );
        assert_eq!(fs::read(&target).unwrap(), before);
    }
}

/// Runs a conversion and changes its source when its file has been begun and the first bytes of it
/// are written. The texts make it take a while longer.
fn while_converting(change: impl Fn(&Path)) -> (Output, Vec<String>) {
    let dir = TempDir::new().unwrap();
    let source = checkpoint(&dir, "source");
    let out = dir.path().join("out.smq");
    let mut command = program();
    command.args(["--threads", "1", "--scheme", "lut4", "--target", "all"]);
    command.arg(&source).arg(&out);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let begun = Instant::now();
    while hidden(dir.path()).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    change(&source);
    let output = child.wait_with_output().unwrap();
    assert!(!out.exists(), "{}", stderr(&output));
    (output, hidden(dir.path()))
}

#[test]
fn a_source_that_is_written_to_is_refused() {
    let (output, left) = while_converting(|source| {
        let path = source.join("model-00003-of-00003.safetensors");
        let bytes = fs::read(&path).unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all(&bytes).unwrap();
    });
    let said = stderr(&output);
    assert!(
        said.contains("00003.safetensors was changed while it was read"),
        "{said}"
    );
    assert_eq!((output.status.code(), left), (Some(1), Vec::new()));
}

#[test]
fn a_source_that_is_cut_off_is_an_error_and_leaves_nothing() {
    let (output, left) = while_converting(|source| {
        for shard in 1..=3 {
            let path = source.join(format!("model-{shard:05}-of-00003.safetensors"));
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(100).unwrap();
        }
    });
    let said = stderr(&output);
    assert!(said.contains("became shorter while it was read"), "{said}");
    assert_eq!((output.status.code(), left), (Some(1), Vec::new()));
}

/// The first interrupt stops the work, which takes its file away; the exit code says so. Every
/// number of threads is as many as are started at most, so that there is something to interrupt.
#[test]
fn an_interrupt_ends_with_130_and_leaves_nothing() {
    for signals in [1, 2] {
        let dir = TempDir::new().unwrap();
        let out = dir.path().join("out.smq");
        let mut command = program();
        command.args(["--threads", "100000", "--scheme", "lut4", "--target", "all"]);
        command.arg(fixture()).arg(&out);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        while hidden(dir.path()).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..signals {
            let pid = child.id().to_string();
            assert!(
                Command::new("kill")
                    .args(["-INT", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_hundred_thousand_jobs_are_not_started() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.smq");
    let mut command = program();
    command
        .args(["--threads", "100000"])
        .arg(fixture())
        .arg(&out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(smq_convert::threads(100_000), 8 * cores);
}

/// What is printed of finished work is not the work.
#[test]
fn a_full_standard_output_is_no_failure_of_a_finished_file() {
    let dir = TempDir::new().unwrap();
    let (out, export) = (dir.path().join("out.smq"), dir.path().join("export"));
    let config = fixture().join("config.json");
    let synth = dir.path().join("synth");
    let source = fixture();
    let synth_args: [&Path; 6] = [
        "synth".as_ref(),
        "--like".as_ref(),
        &config,
        "--layers".as_ref(),
        "1".as_ref(),
        &synth,
    ];
    let runs: [(&Path, Vec<&Path>); 3] = [
        (&out, vec![&source, &out]),
        (&export, export_args(&out, &export).to_vec()),
        (&synth, synth_args.to_vec()),
    ];
    for (made, args) in runs {
        let full = || {
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap()
        };
        let output = program().args(&args).stdout(full()).output().unwrap();
        let said = stderr(&output);
        assert!(said.contains("only the summary is not"), "{said}");
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(made.exists());
        // Nor does it matter that nothing can be said at all.
        let force = program()
            .args(&args)
            .arg("--force")
            .stdout(full())
            .stderr(full())
            .status();
        let code = force.unwrap().code();
        assert!([Some(0), Some(2)].contains(&code), "{code:?}");
    }
}

#[test]
fn layers_that_config_json_leaves_out_are_told() {
    let dir = TempDir::new().unwrap();
    let source = checkpoint(&dir, "source");
    let path = source.join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["num_hidden_layers"], 4);
    config["num_hidden_layers"] = 2.into();
    for list in ["short_factor", "long_factor"] {
        assert!(config["rope_scaling"][list].is_array());
    }
    fs::write(&path, config.to_string()).unwrap();
    let out = dir.path().join("out.smq");
    let output = convert(&[&source, &out]);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("num_hidden_layers is 2, but there are weights of 2 more: they are not used"),
        "{said}"
    );
}
