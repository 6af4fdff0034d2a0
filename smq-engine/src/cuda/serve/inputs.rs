//! A step's arrays, laid out on the host for one copy to the GPU.

use bytemuck::NoUninit;

use crate::cuda::arena::Arena;
use crate::cuda::memory::Span;
use crate::cuda::prefill::attention::KEYS;
use crate::error::{Error, Result};
use crate::serve::Chunk;

/// Where a row's key and value go (`rope.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(C)]
pub(super) struct Place {
    /// Of all tokens that the arena has room for.
    pub token: i32,
    /// 1 with LongRoPE's long factors.
    pub long: i32,
    pub unused: i32,
    /// In its sequence.
    pub position: i32,
}

/// Rows of one sequence that attend together (`attention_prefill.cu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(C)]
pub(super) struct Tile {
    /// The first row in the step.
    pub first: i32,
    /// How many; 0 of a tile that only fills up a recorded step.
    pub rows: i32,
    /// The first row's position.
    pub position: i32,
    /// Where the sequence's pages begin among the tables.
    pub table: i32,
}

/// The rows of a step.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub tokens: Vec<u32>,
    pub places: Vec<Place>,
    pub tiles: Vec<Tile>,
    /// Rows whose logits are wanted.
    pub wanted: Vec<i32>,
    /// Page tables, one behind the other.
    pub tables: Vec<u32>,
    /// Whether some chunk has several rows.
    pub drafted: bool,
}

impl Inputs {
    /// Appends a chunk's rows; returns the first one's number.
    pub(super) fn push(&mut self, chunk: &Chunk<'_>) -> usize {
        let first = self.tokens.len();
        let table = self.tables.len() as i32;
        self.drafted |= chunk.tokens.len() > 1;
        let len = chunk.past + chunk.tokens.len();
        self.tables
            .extend_from_slice(&chunk.pages[..len.div_ceil(KEYS)]);
        self.tokens.extend_from_slice(chunk.tokens);
        self.places.extend((chunk.past..len).map(|position| Place {
            token: (chunk.pages[position / KEYS] as usize * KEYS + position % KEYS) as i32,
            long: i32::from(chunk.long),
            unused: 0,
            position: position as i32,
        }));
        // A draft within a page is as many steps of single tokens, which are recorded: the kernel
        // reads the pages before a token's own ahead of what this step writes.
        let within_page = chunk.past / KEYS == (len - 1) / KEYS;
        let rows = match chunk.drafts + 1 == chunk.tokens.len() && within_page {
            true => 1,
            false => KEYS,
        };
        let tiles = (0..chunk.tokens.len()).step_by(rows).map(|row| Tile {
            first: (first + row) as i32,
            rows: rows.min(chunk.tokens.len() - row) as i32,
            position: (chunk.past + row) as i32,
            table,
        });
        self.tiles.extend(tiles);
        first
    }

    /// Fills up to `rows` rows, a tile each and wanted, that change nothing but what is at token
    /// `spare` of the arena.
    pub(super) fn fill_up(&mut self, rows: usize, spare: usize) {
        let nowhere = Place {
            token: spare as i32,
            long: 0,
            unused: 0,
            position: 0,
        };
        let nothing = Tile {
            first: 0,
            rows: 0,
            position: 0,
            table: 0,
        };
        self.tokens.resize(rows, 0);
        self.places.resize(rows, nowhere);
        self.tiles.resize(rows, nothing);
        let wanted = self.wanted.len();
        self.wanted.extend(wanted as i32..rows as i32);
    }
}

/// Where the arrays lie in the memory that takes them: this depends on their lengths alone, but for
/// the tables, which come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub tokens: usize,
    pub places: usize,
    pub tiles: usize,
    pub wanted: usize,
    pub tables: usize,
    /// Of everything but the tables.
    pub bytes: usize,
}

impl Layout {
    pub(super) fn new(rows: usize, tiles: usize, wanted: usize) -> Result<Self> {
        let mut arena = Arena::sizes();
        let mut take = |bytes| arena.take(bytes).map(|span: Span| span.ptr() as usize);
        let (tokens, places) = (take(4 * rows)?, take(size_of::<Place>() * rows)?);
        let (tiles, wanted) = (take(size_of::<Tile>() * tiles)?, take(4 * wanted)?);
        let tables = take(0)?;
        Ok(Self {
            tokens,
            places,
            tiles,
            wanted,
            tables,
            bytes: tables,
        })
    }

    /// Writes the arrays where they belong; returns the bytes that are to be copied.
    pub(super) fn write(&self, inputs: &Inputs, to: &mut [u8]) -> Result<usize> {
        let bytes = self.bytes + size_of_val(&inputs.tables[..]);
        let room = to.len();
        let to = to.get_mut(..bytes).ok_or_else(|| {
            Error::Cuda(format!(
                "a step's arrays of {bytes} bytes do not fit in {room}"
            ))
        })?;
        let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
        put(self.tokens, bytemuck::cast_slice(&inputs.tokens));
        put(self.places, bytemuck::cast_slice(&inputs.places));
        put(self.tiles, bytemuck::cast_slice(&inputs.tiles));
        put(self.wanted, bytemuck::cast_slice(&inputs.wanted));
        put(self.tables, bytemuck::cast_slice(&inputs.tables));
        Ok(bytes)
    }
}

/// Rows of the recorded step that does `rows`.
pub(super) fn bucket(rows: usize) -> usize {
    match rows {
        0..=8 => rows,
        9..=64 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk<'a>(pages: &'a [u32], past: usize, tokens: &'a [u32]) -> Chunk<'a> {
        Chunk {
            pages,
            past,
            tokens,
            drafts: 0,
            long: false,
            scores: None,
            choice: None,
        }
    }

    #[test]
    fn rows_lie_in_their_pages_and_tiles_hold_rows_of_one_sequence() {
        let tokens: Vec<u32> = (0..150).collect();
        let mut inputs = Inputs::default();
        assert_eq!(inputs.push(&chunk(&[7], 3, &tokens[..1])), 0);
        assert_eq!(inputs.push(&chunk(&[2, 9, 4, 5], 60, &tokens)), 1);
        let place = |row: usize| (inputs.places[row].token, inputs.places[row].position);
        assert_eq!(place(0), (7 * 64 + 3, 3));
        assert_eq!(place(1), (2 * 64 + 60, 60));
        assert_eq!(place(5), (9 * 64, 64));
        assert_eq!(place(150), (5 * 64 + 17, 209));
        let tiles: Vec<_> = inputs
            .tiles
            .iter()
            .map(|t| (t.first, t.rows, t.position, t.table))
            .collect();
        assert_eq!(
            tiles,
            [
                (0, 1, 3, 0),
                (1, 64, 60, 1),
                (65, 64, 124, 1),
                (129, 22, 188, 1)
            ]
        );
        assert_eq!(inputs.tables, [7, 2, 9, 4, 5]);
    }

    /// So that a step of them is one of single tokens; but not where a token's page before its own
    /// is written in this step.
    #[test]
    fn a_draft_within_a_page_has_a_tile_a_row() {
        let tokens: Vec<u32> = (0..5).collect();
        let tiles = |past, drafts| {
            let mut inputs = Inputs::default();
            let chunk = Chunk {
                drafts,
                ..chunk(&[2, 9], past, &tokens)
            };
            inputs.push(&chunk);
            let tiles = inputs.tiles.iter();
            tiles
                .map(|t| (t.first, t.rows, t.position, t.table))
                .collect::<Vec<_>>()
        };
        let single = |past| (0..5).map(|i| (i, 1, past + i, 0)).collect::<Vec<_>>();
        assert_eq!(tiles(59, 4), single(59));
        assert_eq!(tiles(64, 4), single(64));
        assert_eq!(tiles(60, 4), [(0, 5, 60, 0)]);
        // A prompt's end is none.
        assert_eq!(tiles(20, 0), [(0, 5, 20, 0)]);
    }

    #[test]
    fn what_fills_up_a_step_has_no_rows() {
        let mut inputs = Inputs::default();
        inputs.push(&chunk(&[7], 3, &[5]));
        inputs.wanted.push(0);
        inputs.fill_up(4, 640);
        assert_eq!(inputs.tokens, [5, 0, 0, 0]);
        assert_eq!(inputs.wanted, [0, 1, 2, 3]);
        assert!(inputs.tiles[1..].iter().all(|t| t.rows == 0));
        assert!(inputs.places[1..].iter().all(|p| p.token == 640));
        let layout = Layout::new(4, 4, 4).unwrap();
        let mut to = vec![0; layout.bytes + 4];
        assert_eq!(layout.write(&inputs, &mut to).unwrap(), layout.bytes + 4);
        assert_eq!(to[layout.tables..], 7_u32.to_ne_bytes());
        assert!(layout.write(&inputs, &mut to[1..]).is_err());
    }
}
