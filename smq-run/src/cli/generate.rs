//! `smq-run generate`: continues one prompt.

mod settings;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::draft::{DraftArgs, Generator, Guesses};
use super::{Global, Opened};
use crate::output::{create, is_stdout, put_json};
pub(super) use settings::SettingArgs;
use smq_convert::cli::{JsonArgs, print_note, tell};
use smq_convert::number::{count, fixed};
use smq_engine::Error;
use smq_engine::generate::{GenerateOptions, Generation, Stop, Timing};
use smq_model::{Message, ModelConfig, Tokenizer};

/// Longest prompt: longer than any context.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// The prompt; without it, standard input (one trailing newline removed)
    #[arg(long, short, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A system message, put before the prompt by the chat template
    #[arg(long, conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    settings: SettingArgs,
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(format!("{e}")),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: usize,
    output_tokens: usize,
    text: &'a str,
    ids: &'a [u32],
    stop: Stop,
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_switch_ms: Option<f64>,
    load_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    guesses: Option<Guesses>,
}

pub(super) fn run(args: &GenerateArgs, global: &Global) -> anyhow::Result<()> {
    let opened = Opened::for_engine(&args.model, global)?;
    let tokenizer = Tokenizer::load(&opened.source)?;
    let vocab = ModelConfig::of(&opened.source)?.vocab;
    let settings = args.settings.settings(&opened.source, vocab)?;
    let json = create(args.json.target(), &opened.inputs(&[]))?;
    let to_stdout = is_stdout(json.as_ref());
    let alone = match args.draft.is_asked_for() {
        true => None,
        false => Some(opened.load()?),
    };
    let prompt = prompt_ids(args, &tokenizer)?;
    opened.check_context(prompt.len())?;
    let max_new_tokens = SettingArgs::new_tokens(&settings, prompt.len())?;
    let (mut generator, load) = match alone {
        Some((engine, load)) => (Generator::Alone(engine), load),
        None => Generator::guessing(&opened, &args.draft, global, prompt.len() + max_new_tokens)?,
    };
    let options = GenerateOptions {
        max_new_tokens,
        settings,
        tokenizer: Some(&tokenizer),
        seed: args.settings.seed(),
    };

    let mut out = std::io::stdout().lock();
    let mut show = |text: &str| -> Result<(), Error> {
        if to_stdout || text.is_empty() {
            return Ok(());
        }
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Error::io("standard output"))
    };
    let mut stream = tokenizer.stream();
    let generation = generator.generate(&prompt, &options, |id| show(&stream.push(id)?))?;
    let (rest, text) = stream.finish()?;
    show(&rest)?;
    show("\n")?;

    let Generation { ids, stop, timing } = &generation;
    let tpot = timing.tpot();
    if json.is_some() {
        let report = Report {
            prompt_tokens: prompt.len(),
            output_tokens: ids.len(),
            text: &text,
            ids,
            stop: *stop,
            ttft_ms: timing.ttft.as_secs_f64() * 1e3,
            tpot_ms: tpot.map(|t| t.as_secs_f64() * 1e3),
            rope_switch_ms: timing.rope_switch.map(|t| t.as_secs_f64() * 1e3),
            load_ms: load.as_secs_f64() * 1e3,
            guesses: generator.guesses(),
        };
        put_json(json, &report)?;
    }
    if to_stdout {
        return Ok(());
    }
    let guesses = generator.guesses();
    tell(&summary((prompt.len(), ids.len()), *stop, timing, guesses));
    Ok(())
}

fn prompt_ids(args: &GenerateArgs, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => stdin_prompt()?,
    };
    if text.is_empty() {
        return Err(Error::Input("the prompt is empty".into()).into());
    }
    // A base model has no template: its prompts are plain text.
    let plain = args.raw || (tokenizer.chat().is_none() && args.system.is_none());
    if plain {
        if !args.raw {
            print_note("the model has no chat template, the prompt is continued as plain text");
        }
        return Ok(tokenizer.encode(&text, true)?);
    }
    let system = args.system.iter().map(|content| Message {
        role: "system".to_owned(),
        content: content.clone(),
    });
    let messages: Vec<Message> = system
        .chain([Message {
            role: "user".to_owned(),
            content: text,
        }])
        .collect();
    Ok(tokenizer.encode_chat(&messages)?)
}

fn stdin_prompt() -> anyhow::Result<String> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        tell("reading the prompt from standard input, end it with Ctrl-D");
    }
    let bytes = smq_format::read_at_most(&mut stdin, "standard input".as_ref(), MAX_PROMPT_BYTES)?;
    let mut text = String::from_utf8(bytes).context("the prompt is not UTF-8")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn summary(
    (prompt, output): (usize, usize),
    stop: Stop,
    timing: &Timing,
    guesses: Option<Guesses>,
) -> String {
    let ttft = timing.ttft.as_secs_f64();
    let mut line = format!(
        "prompt {} tokens, TTFT {} ms ({} tokens/s); output {} tokens",
        count(prompt),
        fixed(ttft * 1e3, 1),
        fixed(prompt as f64 / ttft, 0),
        count(output)
    );
    if let Some(tpot) = timing.tpot() {
        let tpot = tpot.as_secs_f64();
        let rate = fixed(1.0 / tpot, 1);
        line += &format!(", TPOT {} ms ({rate} tokens/s)", fixed(tpot * 1e3, 2));
    }
    if let Some(switch) = timing.rope_switch {
        line += &format!(
            ", LongRoPE switch {} ms (not in TPOT)",
            fixed(switch.as_secs_f64() * 1e3, 1)
        );
    }
    if let Some(guesses) = guesses {
        line += &guesses.to_string();
    }
    line += match stop {
        Stop::EndOfSequence => "; stopped at end of sequence",
        Stop::StopString => "; stopped at a stop string",
        Stop::MaxNewTokens => "; stopped at the limit of new tokens",
        Stop::ContextFull => "; stopped because the model's context is full",
    };
    line
}
