//! What is not a plain file, as input and as output of the three programs: each is answered at
//! once, in one sentence, with exit code 1, and nothing is left behind.
//!
//! The programs are those beside this test's own executable; `cargo test --workspace` builds them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file
#![cfg(unix)]

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype as SourceDtype, TensorView as SourceView, serialize_to_file};
use smq_convert::{
    Checkpoint, ConvertOptions, Method, QuantizeOptions, ScaleChoice, ScaleRule, Target, convert,
};
use smq_format::SmqFile;
use smq_tests::corrupt::Sample;
use smq_tests::{phi3_tiny, program};
use tempfile::TempDir;

/// Longest that any of these commands may take; a program that opens a FIFO would wait for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names the recipe that a conversion takes by itself, which is then not said in a note before the
/// error.
fn named_recipe(line: &str) -> &'static [&'static str] {
    match line.starts_with("smq-convert ") && !line.contains("--to ") {
        true => &["--preset", "nf4"],
        false => &[],
    }
}

/// A scratch directory whose path messages show as `DIR`.
struct Scratch(TempDir);

impl Scratch {
    /// `ok.smq`, `checkpoint/` and what each hazard is named after.
    fn new() -> Self {
        let scratch = Scratch(TempDir::new().unwrap());
        let path = |name: &str| scratch.path(name);
        Sample::write(&path("")).unwrap();
        std::fs::rename(path("sample.smq"), path("ok.smq")).unwrap();
        checkpoint(&path("checkpoint"));
        std::fs::write(path("empty"), b"").unwrap();
        std::fs::write(path("text"), b"some text, longer than a header ".repeat(10)).unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        fifo(&path("fifo"));
        symlink("missing", path("dangling")).unwrap();
        symlink("circle", path("circle")).unwrap();
        symlink("fifo", path("link-to-fifo")).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name();
        entries
            .map(|e| name(e).to_string_lossy().into_owned())
            .collect()
    }

    /// Runs `line`, whose `DIR` is this directory; returns exit code and standard error.
    fn run(&self, line: &str) -> (Option<i32>, String) {
        let mut words = line.split(' ');
        let mut command = Command::new(program(words.next().unwrap()).unwrap());
        let dir = self.0.path().to_str().unwrap();
        command.args(named_recipe(line));
        command.args(words.map(|word| word.replace("DIR", dir)));
        let (code, stderr) = wait(command).unwrap();
        (code, stderr.replace(dir, "DIR"))
    }

    /// Each line fails with exactly the message beside it and changes nothing here.
    fn refused(&self, cases: &[(&str, &str)]) {
        let before = self.names();
        let mut wrong = Vec::new();
        for (line, expected) in cases {
            let (code, stderr) = self.run(line);
            let expected = format!("error: {expected}\n");
            // "..." stands for a random name.
            let fits = match expected.strip_suffix("...\n") {
                Some(start) => stderr.starts_with(start),
                None => stderr == expected,
            };
            if code != Some(1) || !fits {
                wrong.push(format!("{line}\n    {code:?} {stderr}"));
            }
            assert_eq!(self.names(), before, "{line}");
        }
        assert!(wrong.is_empty(), "answered otherwise:\n{}", wrong.join(""));
    }

    fn succeeds(&self, line: &str) {
        let (code, stderr) = self.run(line);
        assert_eq!(code, Some(0), "{line}: {stderr}");
    }
}

/// Waits for a command, not longer than [`PATIENCE`].
fn wait(mut command: Command) -> std::io::Result<(Option<i32>, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill()?;
            panic!("{command:?} waits for something");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr)?;
    Ok((status.code(), stderr))
}

fn fifo(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

/// A checkpoint of one small matrix.
fn checkpoint(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let bytes: Vec<u8> = (0..256u16)
        .flat_map(|i| (0x3c00 + i).to_le_bytes())
        .collect();
    let view = SourceView::new(SourceDtype::BF16, vec![2, 128], &bytes).unwrap();
    let tensors = [("model.layers.0.mlp.up_proj.weight", view)];
    serialize_to_file(tensors, None, &dir.join("model.safetensors")).unwrap();
}

#[test]
fn inputs() {
    let scratch = Scratch::new();
    scratch.refused(&[
        ("smq-inspect DIR/missing", "DIR/missing: cannot open it: No such file or directory (os error 2)"),
        ("smq-inspect DIR/dangling", "DIR/dangling: cannot follow this symbolic link: No such file or directory (os error 2)"),
        ("smq-inspect DIR/circle", "DIR/circle: cannot follow this symbolic link: Too many levels of symbolic links (os error 40)"),
        ("smq-inspect DIR/dir", "DIR/dir: is a directory; give a .smq file, which smq-convert makes of a checkpoint directory"),
        ("smq-inspect DIR/fifo", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-inspect DIR/link-to-fifo", "DIR/link-to-fifo is a FIFO, not a regular file"),
        ("smq-inspect DIR/empty", "DIR/empty: file is 0 bytes, shorter than the 256-byte header"),
        ("smq-inspect DIR/text", "DIR/text: not an .smq file: the first 8 bytes are 73 6f 6d 65 20 74 65 78, expected 89 53 4d 51 0d 0a 1a 0a"),
        ("smq-inspect /dev/null", "/dev/null is a device, not a regular file"),
        ("smq-inspect DIR/ok.smq/file", "DIR/ok.smq/file: cannot open it: Not a directory (os error 20)"),
        ("smq-inspect --strip-statistics DIR/fifo", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-inspect --recheck DIR/fifo DIR/ok.smq", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-convert DIR/missing DIR/out.smq", "DIR/missing: cannot open it: No such file or directory (os error 2)"),
        ("smq-convert DIR/out.smq DIR/checkpoint", "DIR/out.smq: cannot open it: No such file or directory (os error 2); DIR/checkpoint is a checkpoint, which comes first: smq-convert DIR/checkpoint DIR/out.smq"),
        ("smq-convert DIR/dangling DIR/out.smq", "DIR/dangling: cannot follow this symbolic link: No such file or directory (os error 2)"),
        ("smq-convert DIR/circle DIR/out.smq", "DIR/circle: cannot follow this symbolic link: Too many levels of symbolic links (os error 40)"),
        ("smq-convert DIR/dir DIR/out.smq", "DIR/dir: no model.safetensors, no model.safetensors.index.json and no other .safetensors file in it"),
        ("smq-convert DIR/fifo DIR/out.smq", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-convert DIR/link-to-fifo DIR/out.smq", "DIR/link-to-fifo is a FIFO, not a regular file"),
        ("smq-convert DIR/empty DIR/out.smq", "DIR/empty: is not a checkpoint; give a Hugging Face checkpoint directory, or one .safetensors file"),
        ("smq-convert DIR/text DIR/out.smq", "DIR/text: is not a checkpoint; give a Hugging Face checkpoint directory, or one .safetensors file"),
        ("smq-convert DIR/ok.smq DIR/out.smq", "DIR/ok.smq is a .smq file already; pass --to safetensors or --to compressed-tensors and a directory to convert it back (smq-convert --help lists more forms)"),
        ("smq-convert /dev/null DIR/out.smq", "/dev/null is a device, not a regular file"),
        ("smq-convert --to safetensors DIR/fifo DIR/out", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-convert --to safetensors DIR/checkpoint DIR/out", "DIR/checkpoint: is a directory; give a .smq file, which smq-convert makes of a checkpoint directory"),
        ("smq-run generate --prompt a DIR/missing", "DIR/missing: cannot open it: No such file or directory (os error 2)"),
        ("smq-run generate --prompt a DIR/dangling", "DIR/dangling: cannot follow this symbolic link: No such file or directory (os error 2)"),
        ("smq-run generate --prompt a DIR/circle", "DIR/circle: cannot follow this symbolic link: Too many levels of symbolic links (os error 40)"),
        ("smq-run generate --prompt a DIR/dir", "DIR/dir: no model.safetensors, no model.safetensors.index.json and no other .safetensors file in it"),
        ("smq-run generate --prompt a DIR/fifo", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-run generate --prompt a DIR/link-to-fifo", "DIR/link-to-fifo is a FIFO, not a regular file"),
        ("smq-run generate --prompt a DIR/empty", "DIR/empty: file is 0 bytes, shorter than the 256-byte header"),
        ("smq-run generate --prompt a DIR/text", "DIR/text: not an .smq file: the first 8 bytes are 73 6f 6d 65 20 74 65 78, expected 89 53 4d 51 0d 0a 1a 0a"),
        ("smq-run generate --prompt a /dev/null", "/dev/null is a device, not a regular file"),
    ]);
}

/// Whoever leaves the command out is told which there are for a model.
#[test]
fn a_model_in_place_of_a_command() {
    let scratch = Scratch::new();
    let (code, stderr) = scratch.run("smq-run DIR/ok.smq");
    let expected = "error: DIR/ok.smq is a file or directory, and a command comes first: smq-run chat DIR/ok.smq ";
    assert!(
        code == Some(2) && stderr.starts_with(expected),
        "{code:?} {stderr}"
    );
    let (code, stderr) = scratch.run("smq-run DIR/missing");
    let expected = "error: unrecognized subcommand";
    assert!(
        code == Some(2) && stderr.starts_with(expected),
        "{code:?} {stderr}"
    );
}

/// A file of a checkpoint directory that is none.
#[test]
fn inputs_within_a_checkpoint() {
    const FIFO: &str = " is a FIFO, not a regular file";
    const DIRECTORY: &str = " is a directory, not a regular file";
    const DEVICE: &str = " is a device, not a regular file";
    const DANGLING: &str =
        ": cannot follow this symbolic link: No such file or directory (os error 2)";
    for (name, hazard, problem) in [
        ("config.json", "fifo", FIFO),
        ("config.json", "dir", DIRECTORY),
        ("config.json", "dangling", DANGLING),
        ("tokenizer.json", "/dev/zero", DEVICE),
        ("model.safetensors", "fifo", FIFO),
        ("model.safetensors", "dir", DIRECTORY),
        ("model.safetensors", "dangling", DANGLING),
        ("model.safetensors", "/dev/null", DEVICE),
        ("model.safetensors.index.json", "fifo", FIFO),
        ("model.safetensors.index.json", "dangling", DANGLING),
    ] {
        let scratch = Scratch::new();
        let path = scratch.path("checkpoint").join(name);
        let _ = std::fs::remove_file(&path);
        if name == "model.safetensors.index.json" {
            // transformers takes a whole file before an index, whatever the index is.
            std::fs::remove_file(path.with_file_name("model.safetensors")).unwrap();
        }
        // A link to the hazard is the hazard.
        symlink(scratch.path(hazard), &path).unwrap();
        let problem = format!("DIR/checkpoint/{name}{problem}");
        scratch.refused(&[
            ("smq-convert DIR/checkpoint DIR/out.smq", &problem),
            ("smq-run generate --prompt a DIR/checkpoint", &problem),
        ]);
    }
    let scratch = Scratch::new();
    std::fs::write(scratch.path("checkpoint/model.safetensors"), b"").unwrap();
    scratch.refused(&[
        (
            "smq-convert DIR/checkpoint DIR/out.smq",
            "DIR/checkpoint/model.safetensors: not a complete safetensors file: header too small; download it again",
        ),
        (
            "smq-run generate --prompt a DIR/checkpoint",
            "DIR/checkpoint/model.safetensors: not a complete safetensors file: header too small; download it again",
        ),
    ]);
}

#[test]
fn outputs() {
    let scratch = Scratch::new();
    std::fs::copy(
        scratch.path("checkpoint/model.safetensors"),
        scratch.path("one.safetensors"),
    )
    .unwrap();
    symlink("one.safetensors", scratch.path("link-to-input")).unwrap();
    std::fs::write(scratch.path("config.json"), b"{}").unwrap();
    scratch.refused(&[
        ("smq-convert DIR/checkpoint DIR/dir", "DIR/dir is a directory, not a regular file"),
        ("smq-convert --force DIR/checkpoint DIR/dir", "DIR/dir is a directory, not a regular file"),
        ("smq-convert --force DIR/checkpoint DIR/fifo", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-convert --force DIR/checkpoint DIR/link-to-fifo", "DIR/link-to-fifo is a FIFO, not a regular file"),
        ("smq-convert --force DIR/checkpoint /dev/null", "/dev/null is a device, not a regular file"),
        ("smq-convert DIR/checkpoint DIR/text", "DIR/text exists already; choose another name or pass --force to replace it"),
        ("smq-convert DIR/checkpoint DIR/dangling", "DIR/dangling is a symbolic link that leads nowhere, not a regular file"),
        ("smq-convert --force DIR/checkpoint DIR/dangling", "DIR/dangling is a symbolic link that leads nowhere, not a regular file"),
        ("smq-convert --force DIR/checkpoint DIR/circle", "DIR/circle is a symbolic link that leads nowhere, not a regular file"),
        ("smq-convert DIR/checkpoint DIR/missing/out.smq", "DIR/missing/out.smq: cannot create it: DIR/missing does not exist; create it first"),
        ("smq-convert DIR/checkpoint DIR/text/out.smq", "DIR/text/out.smq: cannot create it: DIR/text is not a directory"),
        ("smq-convert DIR/checkpoint DIR/dangling/out.smq", "DIR/dangling/out.smq: cannot create it: DIR/dangling does not exist; create it first"),
        ("smq-convert DIR/checkpoint DIR/new/", "DIR/new/ is the name of a directory, not a regular file"),
        ("smq-convert DIR/one.safetensors DIR/one.safetensors", "DIR/one.safetensors is a file of the checkpoint that is being converted; choose another name for the .smq file"),
        (
            "smq-convert --force DIR/one.safetensors DIR/one.safetensors",
            "DIR/one.safetensors is a file of the checkpoint that is being converted; choose another name for the .smq file",
        ),
        (
            "smq-convert --force DIR/one.safetensors DIR/dir/../one.safetensors",
            "DIR/dir/../one.safetensors is a file of the checkpoint that is being converted; choose another name for the .smq file",
        ),
        (
            "smq-convert --force DIR/one.safetensors DIR/link-to-input",
            "DIR/link-to-input is a file of the checkpoint that is being converted; choose another name for the .smq file",
        ),
        (
            "smq-convert --force DIR/one.safetensors DIR/config.json",
            "DIR/config.json is a file of the checkpoint that is being converted; choose another name for the .smq file",
        ),
        ("smq-convert --to safetensors DIR/ok.smq DIR/text", "DIR/text: exists and is not a directory"),
        ("smq-convert --to safetensors DIR/ok.smq DIR/fifo", "DIR/fifo: exists and is not a directory"),
        ("smq-convert --to safetensors DIR/ok.smq DIR/dangling", "DIR/dangling: exists and is not a directory"),
        ("smq-convert --to safetensors DIR/ok.smq DIR/text/new", "DIR/text/new: cannot create a temporary directory beside it: Not a directory (os error 20)"),
        ("smq-inspect --html DIR/dir DIR/ok.smq", "DIR/dir is a directory, not a regular file"),
        ("smq-inspect --html DIR/fifo DIR/ok.smq", "DIR/fifo is a FIFO, not a regular file"),
        ("smq-inspect --html DIR/ok.smq DIR/ok.smq", "DIR/ok.smq is an input; choose another name for the output"),
        ("smq-inspect --html DIR/missing/page.html DIR/ok.smq", "DIR/missing/page.html: cannot create it: DIR/missing does not exist; create it first"),
    ]);
    let text = std::fs::read_to_string(scratch.path("text")).unwrap();
    assert!(text.starts_with("some text"));
    assert!(Checkpoint::open(&scratch.path("one.safetensors")).is_ok());
    assert_eq!(std::fs::read_dir(scratch.path("dir")).unwrap().count(), 0);
}

/// A link is as good as what it leads to, as input; as output its target is replaced.
#[test]
fn links_are_followed() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name);
    symlink("ok.smq", path("link.smq")).unwrap();
    symlink("checkpoint", path("link-to-checkpoint")).unwrap();
    symlink("checkpoint/model.safetensors", path("link.safetensors")).unwrap();
    scratch.succeeds("smq-inspect --verify DIR/link.smq");
    scratch.succeeds("smq-convert DIR/link-to-checkpoint DIR/a.smq");
    scratch.succeeds("smq-convert DIR/link.safetensors DIR/b.smq");
    let tensors = |name: &str| SmqFile::open(&path(name)).unwrap().index().tensors.clone();
    assert_eq!(tensors("a.smq"), tensors("b.smq"));

    std::fs::create_dir(path("elsewhere")).unwrap();
    std::fs::copy(path("ok.smq"), path("elsewhere/target.smq")).unwrap();
    symlink("elsewhere/target.smq", path("to-target.smq")).unwrap();
    scratch.refused(&[(
        "smq-convert DIR/checkpoint DIR/to-target.smq",
        "DIR/to-target.smq exists already; choose another name or pass --force to replace it",
    )]);
    scratch.succeeds("smq-convert --force DIR/checkpoint DIR/to-target.smq");
    assert!(path("to-target.smq").is_symlink());
    assert_eq!(tensors("elsewhere/target.smq"), tensors("a.smq"));
    assert_eq!(std::fs::read_dir(path("elsewhere")).unwrap().count(), 1);

    scratch.succeeds("smq-inspect --strip-statistics DIR/link.smq");
    assert!(path("link.smq").is_symlink());
    let stripped = SmqFile::open(&path("ok.smq")).unwrap();
    assert_eq!(stripped.statistics().unwrap(), None);
    assert_eq!(stripped.verify(|_| ()), []);
}

#[test]
fn a_link_to_a_model_runs() {
    let scratch = Scratch::new();
    let options = ConvertOptions {
        target: Target::Mlp,
        quantize: Method::Int4(QuantizeOptions {
            group: 128,
            scales: ScaleChoice::F32,
            rule: ScaleRule::Reference,
        }),
        overwrite: false,
        jobs: 0,
    };
    let model = Checkpoint::open(&phi3_tiny()).unwrap();
    convert(&model, &scratch.path("phi3.smq"), &options, &|_| true).unwrap();
    symlink("phi3.smq", scratch.path("link")).unwrap();
    let generate = "smq-run --device cpu generate --prompt a --max-new-tokens 1";
    scratch.succeeds(&format!("{generate} --verify DIR/link"));
    // Damage that opening does not see: --verify does, and before a token.
    let end = SmqFile::open(&scratch.path("phi3.smq"))
        .unwrap()
        .index()
        .tensors[0]
        .blobs[0]
        .offset;
    put(&scratch.path("phi3.smq"), end);
    scratch.refused(&[(
        &*format!("{generate} --verify DIR/link"),
        "DIR/link: tensor \"lm_head.weight\" data: hash does not match: the blob is damaged",
    )]);
}

/// Changes one byte in place.
fn put(path: &Path, at: u64) {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// What `spec/format.md` says under "Files that change".
#[test]
fn files_that_change_under_the_map() {
    let scratch = Scratch::new();
    let path = scratch.path("ok.smq");
    let open = SmqFile::open(&path).unwrap();
    let (inode, old) = (
        std::fs::metadata(&path).unwrap().ino(),
        open.bytes().to_vec(),
    );
    // Replaced by a rename, as the writer does: the map stays on the old file.
    scratch.succeeds("smq-convert --force DIR/checkpoint DIR/ok.smq");
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert!(open.bytes() == old);
    assert_eq!(open.verify(|_| ()), []);
    // Removed: the same.
    let new = SmqFile::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(new.verify(|_| ()), []);
    // Changed in place after it was verified: the map shows it, and verifying again finds it.
    std::fs::write(&path, &old).unwrap();
    let open = SmqFile::open(&path).unwrap();
    assert_eq!(open.verify(|_| ()), []);
    put(&path, open.index().tensors[0].blobs[0].offset);
    assert_eq!(open.verify(|_| ()).len(), 1);
}

/// Files and directories without the permissions, as a user whom they bind: root becomes nobody.
#[test]
fn without_permission() {
    const NOBODY: u32 = 65534;
    let scratch = Scratch::new();
    let root = std::fs::metadata(scratch.path("ok.smq")).unwrap().uid() == 0;
    let mode = |name: &str, mode: u32| {
        std::fs::set_permissions(scratch.path(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("", 0o755);
    std::fs::copy(scratch.path("ok.smq"), scratch.path("readable.smq")).unwrap();
    mode("ok.smq", 0);
    mode("dir", 0o555);
    std::fs::copy(
        scratch.path("checkpoint/model.safetensors"),
        scratch.path("one.safetensors"),
    )
    .unwrap();
    mode("one.safetensors", 0);
    mode("checkpoint/model.safetensors", 0o644);
    std::fs::create_dir(scratch.path("closed")).unwrap();
    mode("closed", 0);
    // Copies, since nobody may not be able to reach the build directory.
    for name in ["smq-convert", "smq-inspect"] {
        std::fs::copy(program(name).unwrap(), scratch.path(name)).unwrap();
        mode(name, 0o755);
    }
    let dir = scratch.0.path().to_str().unwrap();
    for (line, expected) in [
        ("smq-inspect DIR/ok.smq", "DIR/ok.smq: cannot open it"),
        (
            "smq-inspect DIR/closed/ok.smq",
            "DIR/closed/ok.smq: cannot open it",
        ),
        (
            "smq-convert DIR/one.safetensors DIR/dir/out.smq",
            "DIR/one.safetensors: cannot open it",
        ),
        (
            "smq-convert DIR/closed DIR/dir/out.smq",
            "DIR/closed: cannot list it",
        ),
        (
            "smq-convert DIR/checkpoint DIR/dir/out.smq",
            "DIR/dir/out.smq: cannot create a temporary file beside it",
        ),
        (
            "smq-convert DIR/checkpoint DIR/closed/out.smq",
            "DIR/closed/out.smq: cannot create a temporary file beside it",
        ),
        (
            "smq-convert --to safetensors DIR/readable.smq DIR/dir/out",
            "DIR/dir/out: cannot create a temporary directory beside it",
        ),
    ] {
        let mut words = line.split(' ');
        let mut command = Command::new(scratch.path(words.next().unwrap()));
        command.args(named_recipe(line));
        command.args(words.map(|word| word.replace("DIR", dir)));
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let (code, stderr) = match wait(command) {
            Ok(done) => done,
            Err(error) => {
                // Past the capture of a passing test's output, so that it is seen.
                let note = "SKIPPED without_permission: root cannot become nobody here";
                writeln!(std::io::stderr(), "{note}: {error}").unwrap();
                return;
            }
        };
        let stderr = stderr.replace(dir, "DIR");
        assert_eq!(
            (code, stderr),
            (
                Some(1),
                format!("error: {expected}: Permission denied (os error 13)\n")
            ),
            "{line}"
        );
    }
    mode("closed", 0o755);
    assert_eq!(std::fs::read_dir(scratch.path("dir")).unwrap().count(), 0);
    assert_eq!(
        std::fs::read_dir(scratch.path("closed")).unwrap().count(),
        0
    );
}
