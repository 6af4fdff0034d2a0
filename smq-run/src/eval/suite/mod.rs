//! `smq-run eval suite`: every task, and the distance from C0, over every variant of one
//! checkpoint.
//!
//! ```text
//!   checkpoint -> variant (converted, measured, deleted) -> cells on disk
//!              -> summary against C0 -> suite.json, suite.md
//! ```

mod files;
mod neighbours;
mod plan;
mod store;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod variants;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use smq_convert::Checkpoint;
use smq_convert::cli::print_notes;

use super::kl::Base;
use super::ppl::{MAX_TEXT_BYTES, PplOptions};
use super::task::recall::RecallOptions;
use super::task::{Encoded, Prompts, Task, batches, encode_all, evaluate};
use crate::convert::report;
use crate::output::{write_bytes, write_json};
use files::{Maker, text_files};
pub(crate) use plan::RegisteredPlan;
use smq_engine::{Device, Engine};
use smq_format::Scratch;
use smq_model::{GenerationSettings, Source, Tokenizer};
pub(crate) use store::file_name;
use store::{DataFile, FileFacts, Parameters, Store};
pub(crate) use summary::{Summary, VariantSummary};
pub(crate) use table::{brief, page};
pub(crate) use variants::Calibration;
use variants::Variant;

/// What to measure, on what, and where.
#[derive(Debug, Clone)]
pub(crate) struct SuiteOptions {
    /// The directory of the checkpoint.
    pub checkpoint: PathBuf,
    /// Where the data files lie: each task's under its name, such as `lambada.jsonl`, and
    /// `text.txt`.
    pub data: PathBuf,
    /// The directory that results go into.
    pub out: PathBuf,
    /// Which tasks; empty: those whose data is there, none that is made.
    pub tasks: Vec<Task>,
    /// Which variants by name, C0 always; empty: all but those of chosen storage.
    pub only: Vec<String>,
    /// What is registered to be measured, in place of the built-in variants
    /// ([`SuiteOptions::follow`]).
    pub plan: Option<RegisteredPlan>,
    /// Which of the plan's grids; empty: all.
    pub grids: Vec<String>,
    /// What weighs the errors of `-weighed` variants.
    pub sensitivity: Option<PathBuf>,
    /// Only the first items of a task, where it has a limit.
    pub limits: BTreeMap<Task, usize>,
    /// Most new tokens of a free answer.
    pub prompts: Prompts,
    /// The text for the distance from C0, where it is not in the data directory.
    pub text_file: Option<PathBuf>,
    /// How the text is cut.
    pub text: PplOptions,
    /// The device that the models run on.
    pub device: Device,
    /// Tokens of the longest sequence that memory is taken for.
    pub max_tokens: Option<usize>,
}

impl SuiteOptions {
    /// Takes a plan, and what it says of tasks and text.
    pub(crate) fn follow(&mut self, plan: RegisteredPlan) {
        self.tasks.clone_from(&plan.tasks.names);
        self.limits.clear();
        self.prompts.max_new_tokens = plan.tasks.max_new_tokens;
        self.text_file = Some(self.data.join(&plan.distance.text));
        self.text = PplOptions {
            window: plan.distance.window,
            max_tokens: Some(plan.distance.tokens),
        };
        self.plan = Some(plan);
    }
}

/// Where a run is: shown by whoever started it.
pub(crate) trait Progress {
    /// A cell begins, of `steps` items or windows, being the `index`th of `cells`.
    fn cell(&mut self, name: &str, index: usize, cells: usize, steps: usize);
    /// So many steps of it are done.
    fn step(&mut self, done: usize);
}

/// Everything that the variants have in common.
struct Plan {
    /// The variants to be measured, C0 first.
    variants: Vec<Variant>,
    /// To be summarized as far as they are measured: all of a registered plan.
    summarized: Vec<Variant>,
    /// What ends a free answer.
    eos_ids: Vec<u32>,
    requests: BTreeMap<Task, Vec<Encoded>>,
    /// Tokens of the text for the distance from C0.
    text: Option<Vec<u32>>,
    parameters: Parameters,
}

/// Runs what is not there yet and summarizes everything.
///
/// # Errors
/// An unknown variant, a task without its data, a directory of another suite's results, and
/// whatever converting or measuring meets first; finished cells stay.
pub(crate) fn run(options: &SuiteOptions, progress: &mut dyn Progress) -> anyhow::Result<Summary> {
    let source = Source::open(&options.checkpoint)?;
    print_notes(source.notes());
    let tokenizer = Tokenizer::load(&source)?;
    let mut base = smq_engine::load(&source, options.device, options.max_tokens)?;
    print_notes(&base.config().notes);
    let plan = Plan::new(options, &source, &tokenizer, &*base)?;
    let store = Store::open(&options.out, &plan.parameters)?;
    measure(
        options, &plan, &store, &tokenizer, &source, &mut *base, progress,
    )?;
    let summary = summary::summarize(&store, &plan.parameters, &plan.summarized)?;
    write_json(&options.out.join("suite.json"), &summary)?;
    write_bytes(
        &options.out.join("suite.md"),
        table::page(&summary).as_bytes(),
    )?;
    Ok(summary)
}

fn measure(
    options: &SuiteOptions,
    plan: &Plan,
    store: &Store,
    tokenizer: &Tokenizer,
    source: &Source,
    base: &mut dyn Engine,
    progress: &mut dyn Progress,
) -> anyhow::Result<()> {
    let mut counter = Counter {
        progress,
        done: 0,
        cells: plan.variants.len() * plan.requests.len(),
    };
    if plan.text.is_some() {
        counter.cells += plan.variants.len() - 1;
    }
    let name = &plan.variants[0].name;
    tasks(options, plan, store, tokenizer, name, base, &mut counter)?;
    store.put_facts(
        name,
        &FileFacts {
            file_bytes: source.file_bytes(),
            bits_per_weight: None,
            mean_rel_mse: None,
        },
    )?;
    let text = plan.text.clone();
    let mut base = text.map(|ids| Base::new(base, ids, options.text));
    let checkpoint = Checkpoint::open(&options.checkpoint)?;
    let dir = Scratch::beside(&options.out.join("variants"))
        .with_context(|| format!("cannot write in {}", options.out.display()))?;
    let maker = Maker {
        options,
        checkpoint: &checkpoint,
        tokenizer,
        dir: dir.path(),
    };
    for variant in &plan.variants[1..] {
        let name = &variant.name;
        let (Some(how), false) = (&variant.quantized, is_done(plan, store, name)?) else {
            counter.done += plan.requests.len() + usize::from(base.is_some());
            continue;
        };
        let path = dir.path().join(format!("{name}.smq"));
        if how.calibration.is_some() {
            // That takes minutes, of which the cells know nothing.
            let (done, cells) = (counter.done, counter.cells);
            let what = format!("{name} is calibrated");
            counter.progress.cell(&what, done, cells, 0);
        }
        let chosen_bits = maker.make(how, &path).with_context(|| name.clone())?;
        let facts = report(&path)?;
        {
            let source = Source::open(&path)?;
            let mut engine = smq_engine::load(&source, options.device, options.max_tokens)?;
            tasks(
                options,
                plan,
                store,
                tokenizer,
                name,
                &mut *engine,
                &mut counter,
            )?;
            if let Some(base) = &mut base {
                counter.cell(&format!("{name} distance from C0"), base.windows());
                if store.kl(name)?.is_none() {
                    let report = base.compare(&mut *engine, |done| counter.progress.step(done))?;
                    store.put_kl(name, &report)?;
                }
            }
            store.put_facts(
                name,
                &FileFacts {
                    file_bytes: source.file_bytes(),
                    bits_per_weight: chosen_bits.or(facts.sizes.bits_per_quantized_weight),
                    mean_rel_mse: facts.totals.as_ref().map(|t| t.mean_rel_mse),
                },
            )?;
        }
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The tasks of one variant that are not there yet.
fn tasks(
    options: &SuiteOptions,
    plan: &Plan,
    store: &Store,
    tokenizer: &Tokenizer,
    name: &str,
    engine: &mut dyn Engine,
    counter: &mut Counter<'_>,
) -> anyhow::Result<()> {
    for (task, requests) in &plan.requests {
        counter.cell(&format!("{name} {}", task.name()), requests.len());
        if store.items(name, *task)?.is_some() {
            continue;
        }
        let mut items = Vec::with_capacity(requests.len());
        for batch in batches(requests, engine.pass_tokens()) {
            let more = evaluate(engine, tokenizer, &plan.eos_ids, options.prompts, batch);
            items.extend(more.with_context(|| format!("{name}, {}", task.name()))?);
            counter.progress.step(items.len());
        }
        store.put_items(name, *task, &items)?;
    }
    Ok(())
}

/// Whether nothing of a variant is left to measure.
fn is_done(plan: &Plan, store: &Store, name: &str) -> anyhow::Result<bool> {
    for task in plan.requests.keys() {
        if store.items(name, *task)?.is_none() {
            return Ok(false);
        }
    }
    let kl = plan.text.is_none() || store.kl(name)?.is_some();
    Ok(kl && store.facts(name)?.is_some())
}

struct Counter<'p> {
    progress: &'p mut dyn Progress,
    done: usize,
    cells: usize,
}

impl Counter<'_> {
    fn cell(&mut self, name: &str, steps: usize) {
        self.done += 1;
        self.progress.cell(name, self.done, self.cells, steps);
    }
}

impl Plan {
    fn new(
        options: &SuiteOptions,
        source: &Source,
        tokenizer: &Tokenizer,
        base: &dyn Engine,
    ) -> anyhow::Result<Self> {
        let positions = base.config().max_positions;
        let variants = variants(options)?;
        let summarized = match &options.plan {
            Some(plan) => plan.variants(&[])?,
            None => variants.clone(),
        };
        let mut requests = BTreeMap::new();
        let mut files = BTreeMap::new();
        for task in Task::ALL {
            let wanted = options.tasks.contains(&task);
            if !task.is_published() {
                if wanted {
                    let (items, file) = made(options, tokenizer, positions)?;
                    files.insert(task, file);
                    requests.insert(task, items);
                }
                continue;
            }
            let path = match first_there(&options.data, files_of(task)) {
                Some(path) if wanted || options.tasks.is_empty() => path,
                None if wanted => bail!(
                    "{} holds no data for {}; it is looked for as {}",
                    options.data.display(),
                    task.name(),
                    files_of(task).join(", ")
                ),
                _ => continue,
            };
            let items = task.read(&path, options.limits.get(&task).copied())?;
            files.insert(task, DataFile::of(&path, Some(items.len()))?);
            let items = encode_all(tokenizer, options.prompts, positions, &items)
                .with_context(|| path.display().to_string())?;
            requests.insert(task, items);
        }
        let text_path = options.text_file.clone();
        let text_path = text_path.or_else(|| first_there(&options.data, &TEXT_FILES));
        if requests.is_empty() && text_path.is_none() {
            bail!("{} holds no data", options.data.display());
        }
        let text = text_path
            .as_ref()
            .map(|path| {
                let text = smq_format::read_text(path, MAX_TEXT_BYTES)?;
                anyhow::Ok(options.text.tokens(tokenizer, &text, positions)?)
            })
            .transpose()?;
        let text_file = text_path
            .map(|path| DataFile::of(&path, None))
            .transpose()?;
        let parameters = Parameters {
            producer: concat!("smq-run ", env!("CARGO_PKG_VERSION")).to_owned(),
            model: file_name(&options.checkpoint),
            model_blake3: model_hashes(source)?,
            device: base.device().to_owned(),
            tasks: files,
            max_new_tokens: options.prompts.max_new_tokens,
            text: text_file,
            window: options.text.window,
            text_tokens: options.text.max_tokens,
            sensitivity: options
                .sensitivity
                .as_deref()
                .map(|path| DataFile::of(path, None))
                .transpose()?,
            plan: (options.plan.as_ref())
                .map(|plan| DataFile::of(&plan.path, None))
                .transpose()?,
            calibration_texts: match &options.plan {
                Some(plan) => text_files(plan, &options.data)?,
                None => Vec::new(),
            },
        };
        Ok(Self {
            variants,
            summarized,
            eos_ids: GenerationSettings::plain(source)?.eos_ids,
            requests,
            text,
            parameters,
        })
    }
}

/// What is to be measured, C0 first.
fn variants(options: &SuiteOptions) -> anyhow::Result<Vec<Variant>> {
    let mut variants = match &options.plan {
        Some(plan) => plan.variants(&options.grids)?,
        None => Variant::all(),
    };
    let only = named_by_config(&options.only, &variants);
    for name in &only {
        if variants.iter().any(|v| v.name == *name) {
            continue;
        }
        if name.ends_with("-weighed") && options.sensitivity.is_none() {
            bail!("{name} weighs errors by a measured sensitivity; pass --sensitivity FILE");
        }
        if let Some(plan) = &options.plan {
            bail!(
                "{} has no variant {name} in the grids chosen; a name is such as {}",
                plan.path.display(),
                variants.last().map_or("C0", |v| &v.name)
            );
        }
        let Some(auto) = Variant::auto(name) else {
            let names: Vec<_> = variants.iter().map(|v| v.name.as_str()).collect();
            bail!(
                "there is no variant {name}; there are {}, and mlp-auto-BITS, all-auto-BITS, each \
                 also with -weighed",
                names.join(", ")
            );
        };
        variants.push(auto);
    }
    if !only.is_empty() {
        variants.retain(|v| v.quantized.is_none() || only.contains(&v.name));
    }
    Ok(variants)
}

/// The names given, with the variants that a config of the study is in its place: of C4 that is
/// mlp-e5m5, and of C5 there is more than one.
fn named_by_config(given: &[String], variants: &[Variant]) -> Vec<String> {
    let mut names = Vec::new();
    for name in given {
        let is_it = |config: Option<String>| config.is_some_and(|c| c.eq_ignore_ascii_case(name));
        let of_config = variants.iter().filter(|v| is_it(v.named().config));
        let before = names.len();
        names.extend(of_config.map(|v| v.name.clone()));
        if names.len() == before {
            names.push(name.clone());
        }
    }
    names
}

/// The items of the recall task, and what stands for its file.
fn made(
    options: &SuiteOptions,
    tokenizer: &Tokenizer,
    positions: usize,
) -> anyhow::Result<(Vec<Encoded>, DataFile)> {
    let mut recall = RecallOptions::default();
    if let Some(limit) = options.limits.get(&Task::Recall) {
        recall.items = *limit;
    }
    let requests = recall.requests(tokenizer, positions)?;
    let file = DataFile::made(&recall.describe(), &requests);
    let items = encode_all(tokenizer, options.prompts, positions, &requests)?;
    Ok((items, file))
}

/// Where a task's data may lie in the data directory: the first that is there counts.
fn files_of(task: Task) -> &'static [&'static str] {
    match task {
        Task::Lambada => &["lambada.jsonl", "lambada/lambada_openai_test.jsonl"],
        Task::Hellaswag => &[
            "hellaswag.jsonl",
            "hellaswag/hellaswag_val.jsonl",
            "hellaswag/hellaswag_val_activitynet913.jsonl",
        ],
        Task::Arc => &["arc.jsonl", "arc/arc_challenge_test.jsonl"],
        Task::Gsm8k => &["gsm8k.jsonl", "gsm8k/test.jsonl"],
        Task::Recall => &[],
    }
}

/// The same of the text for the distance from C0.
const TEXT_FILES: [&str; 3] = ["text.txt", "wikitext2/wiki.test.raw", "wiki.test.raw"];

fn first_there(data: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut paths = names.iter().map(|name| data.join(name));
    paths.find(|path| path.exists())
}

/// Hashes of everything that decides a checkpoint's answers.
fn model_hashes(source: &Source) -> anyhow::Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for path in source.paths() {
        // Of a template in a directory of its own, that too.
        let within = path.strip_prefix(source.path()).unwrap_or(&path);
        let name = within.to_string_lossy().into_owned();
        if let Entry::Vacant(absent) = hashes.entry(name) {
            absent.insert(store::hash(&path)?);
        }
    }
    Ok(hashes)
}
