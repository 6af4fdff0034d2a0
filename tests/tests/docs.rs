//! Every command and every link in README.md, docs/ and spec/reproduce.md.
//!
//! A command is given to its program in an empty directory, where it fails for want of the files
//! that it names. What is tested is that its command line is understood. The programs are those
//! beside this test's own executable, which `cargo test --workspace` builds first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use smq_tests::program;
use tempfile::TempDir;

const PROGRAMS: [&str; 3] = ["smq-convert", "smq-inspect", "smq-run"];
/// What clap says below a command line that it does not understand.
const NOT_UNDERSTOOD: &str = "For more information, try '--help'";

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_path_buf()
}

/// The pages, README first.
fn pages() -> Vec<PathBuf> {
    let book = root().join("docs/src");
    let listed = std::fs::read_dir(book).unwrap();
    let mut pages: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages.extend([root().join("README.md"), root().join("spec/reproduce.md")]);
    pages
}

/// The words of a command as a shell splits them, up to a comment, a pipe or another command.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    let mut quoted = false;
    for c in command.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => (quote, quoted) = (Some(c), true),
            (None, '#' | '|' | '>' | '&') if words.last().is_some_and(String::is_empty) => break,
            (None, ' ') => {
                if quoted || words.last().is_some_and(|word| !word.is_empty()) {
                    words.push(String::new());
                }
                quoted = false;
            }
            (_, c) => words.last_mut().unwrap().push(c),
        }
    }
    if !quoted && words.last().is_some_and(String::is_empty) {
        words.pop();
    }
    words
}

/// The commands of a page that start one of the programs: indented or fenced, after `$ ` or not,
/// but not in a fence of text.
fn commands(page: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for line in page.lines() {
        if let Some(word) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                None => Some(word),
            };
            continue;
        }
        if fence == Some("text") || (fence.is_none() && !line.starts_with("    ")) {
            continue;
        }
        let line = line.trim_start();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let line = line.strip_prefix("target/release/").unwrap_or(line);
        let words = words(line);
        if words
            .first()
            .is_some_and(|first| PROGRAMS.contains(&first.as_str()))
        {
            found.push(words);
        }
    }
    found
}

#[test]
fn every_command_is_understood() {
    let dir = TempDir::new().unwrap();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for page in pages() {
        for command in commands(&std::fs::read_to_string(&page).unwrap()) {
            let mut run = Command::new(program(&command[0]).unwrap());
            run.args(&command[1..]);
            // These two would work, and for long, where there is a GPU or a server.
            if ["kernels", "load"].contains(&command.get(1).map_or("", String::as_str)) {
                run.arg("--help");
            }
            run.current_dir(dir.path()).stdin(Stdio::null());
            let output = run.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let ended = matches!(output.status.code(), Some(0..=2));
            if said.contains(NOT_UNDERSTOOD) || !ended {
                wrong.push(format!("{}: {}\n{said}", page.display(), command.join(" ")));
            }
            tried += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 60, "only {tried} commands were found");
}

#[test]
fn a_command_that_is_not_understood_is_found_out() {
    let page = "Text\n\n    smq-convert --no-such-option a/ b.smq   # a comment\n\n\
                smq-convert is no command here\n";
    let [command] = &commands(page)[..] else {
        panic!("{:?}", commands(page));
    };
    assert_eq!(command.join(" "), "smq-convert --no-such-option a/ b.smq");
    let output = Command::new(program("smq-convert").unwrap())
        .args(&command[1..])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(NOT_UNDERSTOOD));
    let quoted = words("smq-run generate m --prompt \"Why is it?\" --stop '' > out");
    assert_eq!(quoted[3..], ["--prompt", "Why is it?", "--stop", ""]);
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or("");
            if file.is_empty() || file.contains("://") {
                continue;
            }
            if !page.parent().unwrap().join(file).exists() {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_book_lists_every_page_once() {
    let summary = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    for page in pages()
        .iter()
        .filter(|page| page.starts_with(root().join("docs")))
    {
        let name = page.file_name().unwrap().to_str().unwrap();
        let listed = summary.matches(&format!("]({name})")).count();
        assert_eq!(listed, usize::from(name != "SUMMARY.md"), "{name}");
    }
}
