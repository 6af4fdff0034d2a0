//! What the commands of the three programs have in common: `--json` is written alike, a number of
//! JSON is no string, a number of a text has commas, and options without effect are refused.
//!
//! The programs are those beside this test's own executable, which `cargo test --workspace` builds
//! first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use smq_tests::{fixture, program};
use tempfile::TempDir;

/// Every command that has `--json`, but for `kernels`, which needs a GPU. `MODEL` is the bundled
/// checkpoint, `A` and `B` are files made of it, `DATA/` is the folder of small data sets, `TEXT` a
/// text and `URL` a server's.
const COMMANDS: [(&str, i32); 15] = [
    ("smq-inspect A", 0),
    ("smq-inspect A --tensor 0.mlp.down_proj", 0),
    ("smq-inspect diff A A", 0),
    ("smq-inspect diff A B", 1),
    ("smq-run generate A --prompt Once -n 4", 0),
    ("smq-run generate A --prompt Once -n 4 --speculate ngram", 0),
    (
        "smq-run bench A --prompt-tokens 1100 --output-tokens 2 --repeats 1",
        0,
    ),
    (
        "smq-run bench A --prompt-tokens 8 --output-tokens 2 --repeats 1 --sequences 1,2",
        0,
    ),
    (
        "smq-run eval ppl A --text TEXT --window 32 --text-tokens 1200",
        0,
    ),
    (
        "smq-run eval kl A --base MODEL --text TEXT --window 32 --text-tokens 1200",
        0,
    ),
    (
        "smq-run eval sensitivity MODEL --text TEXT --window 32 --text-tokens 1200",
        0,
    ),
    ("smq-run eval lambada A --data DATA/lambada.jsonl", 0),
    (
        "smq-run eval gsm8k A --data DATA/gsm8k.jsonl --limit 1 --max-new-tokens 4",
        0,
    ),
    ("smq-run eval recall A --distances 16,64 --limit 2", 0),
    (
        "smq-run load --url URL --concurrency 1 --num-prompts 2 --prompt-len 600 --output-len 4",
        0,
    ),
];
/// These are [`COMMANDS`] in all but their names.
const ALIKE: [(&str, &str); 2] = [
    ("smq-run eval hellaswag", "smq-run eval lambada"),
    ("smq-run eval arc", "smq-run eval lambada"),
];
const NEEDS_GPU: &str = "smq-run kernels";
/// Options that have no effect together, or on this command, with a part of what is said.
const WITHOUT_EFFECT: [(&str, &str); 24] = [
    (
        "smq-convert --mbits 5 --scheme nf4 MODEL x.smq",
        "--mbits is for --scheme int4",
    ),
    (
        "smq-convert --mbits 5 --scales f16 MODEL x.smq",
        "cannot be used with",
    ),
    (
        "smq-convert --preset nf4 --target mlp MODEL x.smq",
        "cannot be used with",
    ),
    (
        "smq-convert --preset nf4 --budget 5 MODEL x.smq",
        "--budget is for --mbits auto",
    ),
    ("smq-convert --preset list MODEL x.smq", "converts nothing"),
    (
        "smq-convert --levels nf4 MODEL x.smq",
        "--levels is for --scheme lut4",
    ),
    (
        "smq-convert --requantize MODEL x.smq",
        "--requantize is for int4 checkpoints",
    ),
    (
        "smq-convert --calibrate-tokens 5 MODEL x.smq",
        "--calibrate <TEXT>",
    ),
    ("smq-convert --device cpu MODEL x.smq", "--calibrate <TEXT>"),
    ("smq-convert -v MODEL x.smq", "--dry-run"),
    (
        "smq-convert --to gptq --threads 2 A dir",
        "cannot be used with",
    ),
    (
        "smq-convert --to gptq --measure-kl-tokens 5 A dir",
        "cannot be used with",
    ),
    (
        "smq-convert --to gptq --dtype bf16 A dir",
        "--dtype is for --to safetensors",
    ),
    ("smq-convert MODEL x.gguf", "is named as a .gguf file"),
    (
        "smq-inspect --json --top 3 A",
        "--top has no effect on JSON",
    ),
    (
        "smq-inspect --json --sort name A",
        "--sort has no effect on JSON",
    ),
    (
        "smq-inspect --html x.html --verify A",
        "cannot be used with",
    ),
    (
        "smq-run report dir --device cpu",
        "--device has no effect on report",
    ),
    (
        "smq-run generate MODEL -p a --greedy --top-k 3",
        "cannot be used with",
    ),
    (
        "smq-run generate MODEL -p a --temperature 0 --top-p 0.5",
        "--top-p has no effect",
    ),
    (
        "smq-run generate MODEL -p a --draft-tokens 3",
        "--draft <MODEL>",
    ),
    (
        "smq-run kernels --context 5",
        "--context has no effect on kernels",
    ),
    (
        "smq-run eval suite MODEL --data DATA --out dir --tasks lambada --limit gsm8k=3",
        "--limit gsm8k=N has no effect",
    ),
    (
        "smq-run matrix --model MODEL --out dir --sections energy --repeats 2",
        "--repeats has no effect",
    ),
];
/// Strings that may look like numbers: what a model wrote, and the format's version.
const TEXTS: [&str; 2] = ["text", "version"];

/// A scratch directory with two files of the bundled checkpoint, and a server of it.
struct Place {
    dir: TempDir,
    server: Child,
    url: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for (name, bits) in [("a.smq", "5"), ("b.smq", "3")] {
            let mut convert = Command::new(program("smq-convert").unwrap());
            convert
                .args(["--mbits", bits])
                .arg(fixture("phi3-tiny"))
                .arg(dir.path().join(name));
            let done = convert.output().unwrap();
            assert!(done.status.success(), "{}", stderr(&done));
        }
        let mut serve = Command::new(program("smq-run").unwrap());
        serve
            .args([
                "serve",
                "--device",
                "cpu",
                "--port",
                "0",
                "--until-stdin-ends",
            ])
            .arg(dir.path().join("a.smq"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut server = serve.spawn().unwrap();
        let mut line = String::new();
        let stdout = server.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let (_, url) = line.trim().split_once(" is served at ").unwrap();
        let url = url.to_owned();
        Self { dir, server, url }
    }

    /// Runs a line of [`COMMANDS`] with `more` behind it.
    fn run(&self, line: &str, more: &[&str]) -> Output {
        let path = |path: &Path| path.display().to_string();
        let mut words = line.split(' ').map(|word| match word {
            "A" => path(&self.dir.path().join("a.smq")),
            "B" => path(&self.dir.path().join("b.smq")),
            "MODEL" => path(&fixture("phi3-tiny")),
            "TEXT" => path(&fixture("sample.txt")),
            "URL" => self.url.clone(),
            "DATA" => path(&fixture("eval")),
            word => match word.strip_prefix("DATA/") {
                Some(name) => path(&fixture("eval").join(name)),
                None => word.to_owned(),
            },
        });
        let mut command = Command::new(program(&words.next().unwrap()).unwrap());
        command.args(words).args(more).current_dir(self.dir.path());
        // Nothing here is to be measured on a GPU.
        let runs_model = [" load ", " report ", " kernels "]
            .iter()
            .all(|c| !line.contains(c));
        if line.starts_with("smq-run ") && runs_model {
            command.args(["--device", "cpu"]);
        }
        command.stdin(Stdio::null()).output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The strings of `value` that a number is written in, each with where it is.
fn numbers_in_strings(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.parse::<f64>().is_ok() => {
            found.push(format!("{path}: {text:?}"));
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                numbers_in_strings(item, &format!("{path}[{i}]"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if !TEXTS.contains(&name.as_str()) {
                    numbers_in_strings(field, &format!("{path}.{name}"), found);
                }
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The names of all fields, without those that a measurement may lack.
fn fields(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// Numbers of a text with four digits or more in a row that no comma divides.
fn without_commas(text: &str) -> Vec<&str> {
    let is_long = |word: &&str| {
        let whole = word.trim_start_matches(['+', '-']).split('.').next();
        let whole = whole.unwrap_or_default();
        word.parse::<f64>().is_ok() && whole.len() >= 4 && whole.bytes().all(|c| c.is_ascii_digit())
    };
    text.split([' ', '\n', '\t', '(', ')', ';', '='])
        .map(|word| word.trim_end_matches([',', '.', ':', '%']))
        .filter(is_long)
        .collect()
}

#[test]
fn json_is_asked_for_alike_and_has_numbers_as_numbers() {
    let place = Place::new();
    let mut wrong = Vec::new();
    for (line, code) in COMMANDS {
        let printed = place.run(line, &["--json"]);
        assert_eq!(
            printed.status.code(),
            Some(code),
            "{line}: {}",
            stderr(&printed)
        );
        let printed: Value = serde_json::from_slice(&printed.stdout)
            .unwrap_or_else(|error| panic!("{line} --json: {error}: {}", stdout(&printed)));
        let mut found = Vec::new();
        numbers_in_strings(&printed, "", &mut found);
        wrong.extend(found.iter().map(|found| format!("{line} --json: {found}")));

        let text = place.run(line, &["--json=out.json"]);
        assert_eq!(text.status.code(), Some(code), "{line}: {}", stderr(&text));
        let written = std::fs::read(place.dir.path().join("out.json")).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(fields(&written), fields(&printed), "{line}");
        std::fs::remove_file(place.dir.path().join("out.json")).unwrap();
        // The text is there too, and it is none of JSON's.
        let text = stdout(&text) + &stderr(&text);
        assert!(!text.trim().is_empty(), "{line} --json=FILE");
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
        let bare = without_commas(&text);
        if !bare.is_empty() {
            wrong.push(format!("{line}: {bare:?} in\n{text}"));
        }

        let apart = place.run(line, &["--json", "out.json"]);
        let said = stderr(&apart);
        assert_eq!(apart.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains("--json=out.json"), "{line}: {said}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn options_without_effect_are_refused_before_any_work() {
    let place = Place::new();
    let before = std::fs::read_dir(place.dir.path()).unwrap().count();
    for (line, expected) in WITHOUT_EFFECT {
        let refused = place.run(line, &[]);
        let said = stderr(&refused);
        assert!(said.contains(expected), "{line}: {said}");
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{line}");
        assert!(refused.stdout.is_empty(), "{line}: {}", stdout(&refused));
        let after = std::fs::read_dir(place.dir.path()).unwrap().count();
        assert_eq!(after, before, "{line} left something behind");
    }
}

/// The commands that a program or a command lists in its help.
fn listed(command: &str) -> Vec<String> {
    let help = help(command);
    let Some((_, commands)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    commands
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .map(|name| format!("{command} {name}"))
        .collect()
}

fn help(command: &str) -> String {
    let mut words = command.split(' ');
    let mut run = Command::new(program(words.next().unwrap()).unwrap());
    stdout(&run.args(words).arg("--help").output().unwrap())
}

#[test]
fn no_command_with_json_is_left_out_above() {
    let programs = ["smq-convert", "smq-inspect", "smq-run"].map(str::to_owned);
    let mut commands: Vec<String> = programs.to_vec();
    let mut i = 0;
    while i < commands.len() {
        let below = listed(&commands[i]);
        commands.extend(below);
        i += 1;
    }
    assert!(commands.len() > 20, "{commands:?}");
    let tried = |command: &str| {
        let same = ALIKE.iter().find(|(alike, _)| *alike == command);
        let command = same.map_or(command, |(_, tried)| tried);
        let is_of = |(line, _): &(&str, i32)| {
            // Of `smq-inspect diff a b` the program alone is no command.
            let rest = line
                .strip_prefix(command)
                .and_then(|rest| rest.strip_prefix(' '));
            rest.is_some_and(|rest| command.contains(' ') || !rest.starts_with("diff "))
        };
        command == NEEDS_GPU || COMMANDS.iter().any(is_of)
    };
    let mut with_json = 0;
    for command in &commands {
        let help = help(command);
        if !help.contains("--json") || command == "smq-convert" {
            continue;
        }
        with_json += 1;
        assert!(tried(command), "{command} has --json and is not tried");
        assert!(help.contains("--json[=<FILE>]"), "{command}: {help}");
    }
    assert_eq!(with_json, 14, "{commands:?}");
}

#[test]
fn what_is_looked_for_is_found() {
    let mut found = Vec::new();
    let value = serde_json::json!({"a": ["5", 5], "b": {"text": "5"}, "c": "0x5", "d": "1e3"});
    numbers_in_strings(&value, "", &mut found);
    assert_eq!(found, [".a[0]: \"5\"", ".d: \"1e3\""]);
    let text = "1567 tokens, 1,567 of 12345.6 (3072x8192) 0.123456 2026-11-30 4096: a1234";
    assert_eq!(without_commas(text), ["1567", "12345.6", "4096"]);
}
