//! `smq-run chat` from a pipe and at a pseudo-terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/phi3-tiny")
}

fn program(command: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_smq-run"));
    program.args(["--device", "cpu", command]).arg(fixture());
    program
}

/// A chat that reads `lines` from a pipe.
fn chat(args: &[&str], lines: &str) -> Output {
    let mut child = program("chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn answers(args: &[&str], lines: &str) -> (String, String) {
    let output = chat(args, lines);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

#[test]
fn a_first_answer_is_that_of_generate_and_a_second_knows_the_first() {
    let greedy = ["--greedy", "-n", "12"];
    let (once, _) = answers(&greedy, "Tell me a story\n");
    let generated = program("generate")
        .args(["--prompt", "Tell me a story", "--json"])
        .args(greedy)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&generated.stdout).unwrap();
    assert_eq!(
        once.trim_end_matches('\n'),
        report["text"].as_str().unwrap()
    );

    let twice = "Tell me a story\nTell me a story\n";
    let (both, _) = answers(&greedy, twice);
    let second = both.strip_prefix(&once).unwrap();
    // After a reset the model is asked what it was asked first.
    let reset = "Tell me a story\n/reset\nTell me a story\n";
    let (again, said) = answers(&greedy, reset);
    assert_eq!(again, once.repeat(2));
    assert!(said.contains("the conversation is forgotten"), "{said}");
    assert_ne!(second, once, "{both}");
}

#[test]
fn commands_are_obeyed_and_never_said() {
    let (out, said) = answers(
        &["--greedy", "-n", "4"],
        "/help\n/system\n/system Speak like a pirate.\n/system\n/nonsense\n\n/exit\nHello\n",
    );
    assert_eq!(out, "");
    for words in [
        "/reset         forget the conversation",
        "there is no system message; /system TEXT sets one",
        "the system message is set",
        "the system message is: Speak like a pirate.",
        "there is no command /nonsense; /help lists them, and //nonsense says it to the model",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let greedy = ["--greedy", "-n", "8"];
    let (plain, _) = answers(&greedy, "Hello\n");
    let (by_command, _) = answers(&greedy, "/system Speak like a pirate.\nHello\n");
    let by_option = [&greedy[..], &["--system", "Speak like a pirate."]].concat();
    let (by_option, _) = answers(&by_option, "Hello\n");
    assert_eq!(by_command, by_option);
    assert_ne!(by_command, plain);
}

#[test]
fn a_conversation_that_has_no_room_is_said_and_goes_on() {
    let (out, said) = answers(
        &["--greedy", "-n", "4", "--context", "24"],
        &format!("{}\nHi\n", "word ".repeat(40)),
    );
    assert!(
        said.contains("which --context 24 has no room for"),
        "{said}"
    );
    assert_eq!(out.lines().count(), 1, "{out}");
}

#[test]
fn a_stop_text_ends_an_answer_and_is_part_of_it() {
    let greedy = ["--greedy", "-n", "12"];
    let (whole, _) = answers(&greedy, "Tell me a story\n");
    let stop = whole.split_whitespace().nth(1).unwrap();
    let (cut, said) = answers(
        &[&greedy[..], &["--stop", stop]].concat(),
        "Tell me a story\n",
    );
    let cut = cut.trim_end_matches('\n');
    assert!(
        whole.starts_with(cut) && cut.contains(stop),
        "{whole:?}, {cut:?}"
    );
    assert!(cut.len() < whole.trim_end().len(), "{cut:?}");
    assert!(!said.contains("(stopped after"), "{said}");
}

/// The two ends of a pseudo-terminal.
fn terminal() -> (std::fs::File, std::fs::File) {
    use std::os::fd::FromRawFd;
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: the first two point to integers, and the others may be null.
    let made = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(made, 0);
    // SAFETY: both were just opened, and nobody else has them.
    unsafe {
        (
            std::fs::File::from_raw_fd(ours),
            std::fs::File::from_raw_fd(theirs),
        )
    }
}

fn interrupt(child: &Child) {
    // SAFETY: sends a signal to a process of ours that was not waited for.
    let sent = unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
    assert_eq!(sent, 0);
}

/// What the line editor writes when it gives the terminal back.
const LINE_TAKEN: &[u8] = b"\x1b[?2004l";

/// Reads what a terminal shows until `found` holds of it.
fn watch(screen: &mut std::fs::File, found: impl Fn(&[u8]) -> bool) {
    let mut shown = Vec::new();
    while !found(&shown) {
        let mut byte = [0];
        screen.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
}

#[test]
fn at_a_terminal_ctrl_c_stops_the_answer_and_not_the_program() {
    let (mut terminal, theirs) = terminal();
    // The answer is longer than anybody waits for.
    let mut child = program("chat")
        .args(["-n", "3500", "--min-new-tokens", "3500"])
        .stdin(Stdio::from(theirs.try_clone().unwrap()))
        .stdout(Stdio::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut until = |words: &str| {
        let found = said
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(words));
        assert!(found.is_some(), "{words}");
    };
    until("/help shows what there is beside talking");
    // Typed at the prompt it ends nothing.
    watch(&mut terminal, |shown| shown.ends_with(b"> "));
    terminal.write_all(b"\x03").unwrap();
    until("/exit or Ctrl-D ends the chat");
    watch(&mut terminal, |shown| shown.ends_with(LINE_TAKEN));
    for _ in 0..2 {
        terminal.write_all(b"Tell me a story\r").unwrap();
        watch(&mut terminal, |shown| shown.ends_with(LINE_TAKEN));
        // The answer has begun.
        watch(&mut terminal, |shown| {
            shown.last().is_some_and(u8::is_ascii_alphabetic)
        });
        interrupt(&child);
        until("(stopped)");
    }
    terminal.write_all(b"/exit\r").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
