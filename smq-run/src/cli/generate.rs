//! `smq-run generate`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{Common, load, open, print};
use crate::chat::Message;
use crate::generate::{GenerateOptions, Stop, Timing, generate};
use crate::sample::SamplingOptions;
use crate::{Error, Tokenizer};

#[derive(Args)]
pub(super) struct GenerateArgs {
    /// A .smq file or a checkpoint directory
    model: PathBuf,
    /// The prompt; read from standard input without it
    #[arg(long)]
    prompt: Option<String>,
    /// A system message before it
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Stop after this many tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 takes the most likely token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample only from the most likely tokens that together have this probability
    #[arg(long)]
    top_p: Option<f64>,
    /// Equal seeds give equal texts
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Print one JSON object with text, ids and times instead of the text
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    text: String,
    prompt_tokens: usize,
    ids: Vec<u32>,
    stop: Stop,
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    rope_switch_ms: Option<f64>,
}

pub(super) fn run(common: &Common, args: GenerateArgs) -> anyhow::Result<()> {
    let source = open(common, &args.model)?;
    let tokenizer = Tokenizer::load(&source)?;
    let prompt = prompt_ids(&tokenizer, &args)?;
    let (mut engine, _) = load(common, &source)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        stop_ids: tokenizer.stop_ids(),
        sampling: SamplingOptions {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
        },
    };
    let mut stream = tokenizer.stream();
    let mut pipe = Ok(());
    let generation = generate(&mut *engine, &prompt, &options, |id| {
        let text = stream.push(id)?;
        if !args.json {
            pipe = print(&text);
        }
        match pipe {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::Input("standard output was closed".into())),
        }
    });
    pipe?;
    let generation = generation?;
    let (rest, text) = stream.finish()?;
    let timing = &generation.timing;
    if args.json {
        let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
        let output = Output {
            text,
            prompt_tokens: prompt.len(),
            stop: generation.stop,
            ttft_ms: ms(timing.ttft),
            tpot_ms: timing.tpot().map(ms),
            rope_switch_ms: timing.rope_switch.map(ms),
            ids: generation.ids,
        };
        return print(&(serde_json::to_string(&output)? + "\n"));
    }
    print(&(rest + "\n"))?;
    eprintln!(
        "{}",
        summary(prompt.len(), generation.ids.len(), generation.stop, timing)
    );
    Ok(())
}

fn prompt_ids(tokenizer: &Tokenizer, args: &GenerateArgs) -> anyhow::Result<Vec<u32>> {
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the prompt from standard input")?;
            text
        }
    };
    anyhow::ensure!(!text.trim().is_empty(), "the prompt is empty");
    if args.raw {
        return Ok(tokenizer.encode(&text, true)?);
    }
    let system = args.system.iter().map(|s| Message {
        role: "system",
        content: s.clone(),
    });
    let user = Message {
        role: "user",
        content: text,
    };
    Ok(tokenizer.encode_chat(&system.chain([user]).collect::<Vec<_>>())?)
}

fn summary(prompt: usize, new: usize, stop: Stop, timing: &Timing) -> String {
    let reason = match stop {
        Stop::EndOfSequence => "end of sequence",
        Stop::MaxNewTokens => "token limit",
        Stop::ContextFull => "context full",
    };
    let mut line = format!(
        "{prompt} prompt tokens, {new} new ({reason}), TTFT {:.1} ms",
        timing.ttft.as_secs_f64() * 1e3
    );
    if let Some(tpot) = timing.tpot() {
        let seconds = tpot.as_secs_f64();
        line += &format!(
            ", TPOT {:.2} ms ({:.1} tokens/s)",
            seconds * 1e3,
            1.0 / seconds
        );
    }
    if let Some(switch) = timing.rope_switch {
        line += &format!(
            "; beyond the original context, one token took {:.1} ms to recompute the cache with the long factors",
            switch.as_secs_f64() * 1e3
        );
    }
    line
}
