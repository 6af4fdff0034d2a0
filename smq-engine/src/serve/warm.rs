//! Steps before the first request.

use super::batch::{BatchEngine, Choice, Chunk};
use crate::error::Result;
use crate::sample::Sampler;

/// Computes steps of every number of sequences, and prompts of growing lengths, so that no request
/// waits for what a device does once for each shape: a GPU's kernels are compiled for numbers of
/// rows, and steps of single tokens are recorded the second time they come. Nothing of it can be
/// seen afterwards, but for keys and values in pages that belong to nobody.
///
/// # Errors
/// If the device failed. Logits that are not finite are the first request's business.
pub fn warm_up(engine: &mut dyn BatchEngine) -> Result<()> {
    for (rows, tokens, drafts) in shapes(engine) {
        let of_chunk = tokens.div_ceil(engine.page_tokens());
        let pages: Vec<u32> = (0..(rows * of_chunk) as u32).collect();
        let ids = vec![0; tokens];
        // The first time compiles, the second records.
        for _ in 0..2 {
            let mut samplers = vec![Sampler::greedy(); rows];
            let chunks = samplers.iter_mut().zip(pages.chunks(of_chunk));
            let mut chunks: Vec<_> = chunks
                .map(|(sampler, pages)| Chunk {
                    pages,
                    past: 0,
                    tokens: &ids,
                    drafts,
                    long: false,
                    scores: None,
                    choice: Some(Choice {
                        sampler,
                        allowed: None,
                        // The kernel that chooses has two forms.
                        top: (rows == 1).then_some(1),
                    }),
                })
                .collect();
            engine.step(&mut chunks)?;
        }
    }
    Ok(())
}

/// Chunks of a step, tokens of each, and how many of these are a draft. Devices round numbers of
/// rows up, at the finest in eights above 8 and in 32s above 64; prompts of one shape are at most
/// twice as long as others of it.
fn shapes(engine: &dyn BatchEngine) -> Vec<(usize, usize, usize)> {
    let most = engine.max_rows().min(engine.pages());
    let rows = (1..=8)
        .chain((16..=64).step_by(8))
        .chain((96..).step_by(32));
    let mut shapes: Vec<_> = rows
        .take_while(|rows| *rows < most)
        .map(|r| (r, 1, 0))
        .collect();
    shapes.push((most, 1, 0));
    // Attention has a form of its own for drafts.
    if engine.config().max_positions > 1 {
        shapes.push((1, 2, 1));
    }
    let longest = engine.step_tokens().min(engine.config().max_positions);
    let longest = longest.min(engine.pages() * engine.page_tokens());
    let lengths = (4..).map(|i| 1 << i).take_while(|tokens| *tokens < longest);
    shapes.extend(lengths.chain([longest]).map(|tokens| (1, tokens, 0)));
    shapes
}
