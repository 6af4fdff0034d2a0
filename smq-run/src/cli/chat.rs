//! `smq-run chat`: a conversation at the terminal, or line by line from standard input.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::draft::{DraftArgs, Generator};
use super::generate::SettingArgs;
use super::{Global, Opened};
use smq_convert::cli::{Interruptible, stdout, tell};
use smq_engine::Error;
use smq_engine::generate::{GenerateOptions, Stop};
use smq_model::{GenerationSettings, Message, ModelConfig, Tokenizer};

/// Longest line of standard input: longer than any context.
const MAX_LINE_BYTES: u64 = 64 << 20;
const PROMPT: &str = "> ";
const HELP: &str = "\
/system TEXT   speak to the model as its system from here on; without TEXT, show what is set
/reset         forget the conversation; the system message stays
/help          show this
/exit          end, as Ctrl-D does
Ctrl-C stops an answer, of which what was said stays in the conversation. A line that begins with //
is sent with one of them.";

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// A .smq file or a checkpoint directory, of a model with a chat template
    model: PathBuf,
    /// A system message, which begins the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'l> {
    Nothing,
    Say(&'l str),
    System(&'l str),
    Reset,
    Help,
    Exit,
    Unknown(&'l str),
}

impl<'l> Line<'l> {
    fn of(line: &'l str) -> Self {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return match line {
                "" => Self::Nothing,
                text => Self::Say(text),
            };
        };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (word, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match word {
            "system" => Self::System(rest.trim()),
            "reset" => Self::Reset,
            "help" => Self::Help,
            "exit" | "quit" => Self::Exit,
            _ => Self::Unknown(word),
        }
    }
}

/// Where lines come from.
enum Lines {
    /// A terminal, with a history that the arrow keys go through.
    Edited(Box<DefaultEditor>),
    /// Standard input as it comes.
    Plain,
}

impl Lines {
    fn open() -> anyhow::Result<Self> {
        // What the editor draws belongs to a terminal, and not into a file of answers.
        match std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            true => {
                let editor = DefaultEditor::new().context("cannot edit lines at this terminal")?;
                Ok(Self::Edited(Box::new(editor)))
            }
            false => Ok(Self::Plain),
        }
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Edited(editor) => loop {
                match editor.readline(PROMPT) {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => tell("/exit or Ctrl-D ends the chat"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                }
            },
            Self::Plain => {
                let mut line = Vec::new();
                let mut stdin = std::io::stdin().lock();
                let mut limited = std::io::Read::take(&mut stdin, MAX_LINE_BYTES);
                let read = limited.read_until(b'\n', &mut line);
                match read.context("cannot read from standard input")? {
                    0 => Ok(None),
                    _ => Ok(Some(
                        String::from_utf8(line).context("a line of standard input is not UTF-8")?,
                    )),
                }
            }
        }
    }
}

/// A conversation with a loaded model.
struct Chat<'m> {
    generator: Generator<'m>,
    /// Tokens of the longest context that the engine has room for.
    limit: usize,
    tokenizer: &'m Tokenizer,
    settings: GenerationSettings,
    seed: u64,
    system: Option<String>,
    /// Turns of the user and the model, without the system's.
    turns: Vec<Message>,
}

pub(super) fn run(args: &ChatArgs, global: &Global) -> anyhow::Result<()> {
    let opened = Opened::for_engine(&args.model, global)?;
    let tokenizer = Tokenizer::load(&opened.source)?;
    let model = args.model.display();
    ensure!(
        tokenizer.chat().is_some(),
        "{model} has no chat template, without which it cannot tell who says what; smq-run \
         generate {model} continues plain text"
    );
    let vocab = ModelConfig::of(&opened.source)?.vocab;
    let settings = args.settings.settings(&opened.source, vocab)?;
    let limit = ModelConfig::of(&opened.source)?.max_positions;
    let limit = limit.min(opened.context.unwrap_or(limit));
    let generator = match args.draft.is_asked_for() {
        true => Generator::guessing(&opened, &args.draft, global, limit)?.0,
        false => Generator::Alone(opened.load()?.0),
    };
    let mut chat = Chat {
        generator,
        limit,
        tokenizer: &tokenizer,
        settings,
        seed: args.settings.seed(),
        system: args.system.clone(),
        turns: Vec::new(),
    };
    let mut lines = Lines::open()?;
    if let Lines::Edited(_) = lines {
        tell("/help shows what there is beside talking; Ctrl-D ends");
    }
    while let Some(line) = lines.next()? {
        match Line::of(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Help => tell(HELP),
            Line::Reset => {
                chat.turns.clear();
                tell("the conversation is forgotten");
            }
            Line::System("") => match &chat.system {
                Some(text) => tell(&format!("the system message is: {text}")),
                None => tell("there is no system message; /system TEXT sets one"),
            },
            Line::System(text) => {
                chat.system = Some(text.to_owned());
                tell("the system message is set");
            }
            Line::Unknown(word) => tell(&format!(
                "there is no command /{word}; /help lists them, and //{word} says it to the model"
            )),
            Line::Say(text) => chat.answer(text, &opened)?,
        }
    }
    Ok(())
}

impl Chat<'_> {
    /// The conversation's tokens, and how many may follow.
    ///
    /// # Errors
    /// A conversation that the template refuses, or that leaves no room for an answer.
    fn prompt(&self, messages: &[Message], opened: &Opened) -> anyhow::Result<(Vec<u32>, usize)> {
        let prompt = self.tokenizer.encode_chat(messages)?;
        opened.check_context(prompt.len())?;
        let limit = self.limit;
        ensure!(
            prompt.len() < limit,
            "the conversation has {} tokens, and the model has room for {limit} with an answer; \
             /reset begins a new one",
            prompt.len()
        );
        let new_tokens = SettingArgs::new_tokens(&self.settings, prompt.len())?;
        Ok((prompt, new_tokens))
    }

    /// Puts a turn to the model and streams its answer. What cannot be answered leaves the
    /// conversation as it was.
    ///
    /// # Errors
    /// What ends the chat: an answer that cannot be written, a model that fails.
    fn answer(&mut self, text: &str, opened: &Opened) -> anyhow::Result<()> {
        let turn = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        // From the line on, so that a signal never finds the program between two of its states.
        let interrupts = Interruptible::begin();
        self.turns.push(turn("user", text));
        let system = self.system.iter().map(|text| turn("system", text));
        let messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
        let prepared = self.prompt(&messages, opened);
        let (prompt, max_new_tokens) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.turns.pop();
                tell(&format!("error: {error:#}"));
                return Ok(());
            }
        };
        let options = GenerateOptions {
            max_new_tokens,
            settings: self.settings.clone(),
            tokenizer: Some(self.tokenizer),
            seed: self.seed,
        };
        let mut out = stdout();
        let mut show = |text: &str| {
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(Error::io("standard output"))
        };
        let mut stream = self.tokenizer.stream();
        let generation = self.generator.generate(&prompt, &options, |id| {
            show(&stream.push(id)?)?;
            match interrupts.is_interrupted() {
                true => Err(Error::Input("interrupted".to_owned())),
                false => Ok(()),
            }
        });
        let was_interrupted = interrupts.is_interrupted();
        drop(interrupts);
        let stop = match generation {
            Ok(generation) => Some(generation.stop),
            Err(_) if was_interrupted => None,
            Err(error) => return Err(error.into()),
        };
        let (rest, answer) = stream.finish()?;
        show(&rest)?;
        show("\n")?;
        self.turns.push(turn("assistant", &answer));
        match stop {
            None => tell("(stopped)"),
            Some(Stop::MaxNewTokens) => {
                tell(&format!(
                    "(stopped after {max_new_tokens} tokens; -n allows more)"
                ));
            }
            Some(Stop::ContextFull) => {
                tell("(stopped, since the model's context is full; /reset begins a new one)");
            }
            Some(Stop::EndOfSequence | Stop::StopString) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        for (line, expected) in [
            ("  \n", Line::Nothing),
            ("Hello, you\n", Line::Say("Hello, you")),
            ("/system Be brief. \n", Line::System("Be brief.")),
            ("/system", Line::System("")),
            ("/reset\n", Line::Reset),
            ("/exit", Line::Exit),
            ("/quit", Line::Exit),
            ("/help", Line::Help),
            ("/who are you", Line::Unknown("who")),
            ("//reset", Line::Say("/reset")),
        ] {
            assert_eq!(Line::of(line), expected, "{line:?}");
        }
    }
}
