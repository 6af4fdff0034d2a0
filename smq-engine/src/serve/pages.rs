//! Which page of the cache holds what, and for whom.

use std::collections::{BTreeMap, HashMap};

use blake3::Hash;

/// The bookkeeping of an arena of pages, each with room for the keys and values of the same number
/// of tokens.
///
/// A page is held by any number of sequences, and is written by the one that took it. Once all of
/// it is written it may be published under the [hash](page_hash) of every token up to its end, by
/// which others find it. A published page that nobody holds any more keeps its contents until its
/// place is needed; the one that was let go first goes first.
#[derive(Debug)]
pub struct Pages {
    page_tokens: usize,
    pages: Vec<Page>,
    /// Pages that are neither held nor published.
    free: Vec<u32>,
    published: HashMap<Hash, u32>,
    /// Published pages that nobody holds, by when they were let go.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

#[derive(Debug, Clone, Default)]
struct Page {
    holders: u32,
    hash: Option<Hash>,
    /// Its key in `idle`, while it is there.
    idle_since: u64,
}

impl Pages {
    /// An arena of `count` pages of `page_tokens` tokens each.
    #[must_use]
    pub fn new(count: usize, page_tokens: usize) -> Self {
        Self {
            page_tokens,
            pages: vec![Page::default(); count],
            free: (0..count as u32).rev().collect(),
            published: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Tokens that a page has room for.
    #[must_use]
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages that so many tokens fill or begin.
    #[must_use]
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Pages of the arena.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    /// Pages that can be taken, published ones that nobody holds among them.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A page to be written, held once; `None` if every page is held.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                if let Some(hash) = self.pages[page as usize].hash.take() {
                    self.published.remove(&hash);
                }
                page
            }
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    /// Holds the page that is published under `hash` once more.
    pub fn find(&mut self, hash: &Hash) -> Option<u32> {
        let page = *self.published.get(hash)?;
        let entry = &mut self.pages[page as usize];
        if entry.holders == 0 {
            self.idle.remove(&entry.idle_since);
        }
        entry.holders += 1;
        Some(page)
    }

    /// Lets others find a page that is written to its end. Where another page is published under
    /// that hash already, that one stays the one to be found.
    pub fn publish(&mut self, page: u32, hash: Hash) {
        let entry = &mut self.pages[page as usize];
        if entry.hash.is_none() && !self.published.contains_key(&hash) {
            entry.hash = Some(hash);
            self.published.insert(hash, page);
        }
    }

    /// Lets go of a sequence's pages and empties its table. The last ones become idle first, since
    /// they are of no use without those before them.
    pub fn release(&mut self, table: &mut Vec<u32>) {
        for page in table.drain(..).rev() {
            let entry = &mut self.pages[page as usize];
            // A page without holders is in no table; checked arithmetic would be a panic.
            entry.holders = entry.holders.saturating_sub(1);
            if entry.holders > 0 {
                continue;
            }
            if entry.hash.is_some() {
                self.clock += 1;
                entry.idle_since = self.clock;
                self.idle.insert(self.clock, page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// Forgets what is published: the contents of the arena are not to be relied on any more.
    pub fn forget(&mut self) {
        self.published.clear();
        for page in std::mem::take(&mut self.idle).into_values() {
            self.free.push(page);
        }
        for page in &mut self.pages {
            page.hash = None;
        }
    }

    /// Checks that every page is in one place: held exactly as often as it is in `tables`, or idle
    /// under its hash, or free.
    ///
    /// # Errors
    /// The page that is not, and how.
    pub fn check<'t>(&self, tables: impl IntoIterator<Item = &'t [u32]>) -> Result<(), String> {
        let mut held = vec![0u32; self.pages.len()];
        for table in tables {
            for page in table {
                let count = held.get_mut(*page as usize);
                *count.ok_or_else(|| format!("page {page} is not of this arena"))? += 1;
            }
        }
        let mut places = vec![0; self.pages.len()];
        for page in &self.free {
            places[*page as usize] += 1;
            if self.pages[*page as usize].hash.is_some() {
                return Err(format!("page {page} is free and published"));
            }
        }
        for (since, page) in &self.idle {
            places[*page as usize] += 1;
            let entry = &self.pages[*page as usize];
            if entry.idle_since != *since || entry.hash.is_none() {
                return Err(format!("page {page} is idle without being published"));
            }
        }
        for (hash, page) in &self.published {
            if self.pages[*page as usize].hash != Some(*hash) {
                return Err(format!("page {page} is published under a hash it has not"));
            }
        }
        let mut hashed = 0;
        for (page, entry) in self.pages.iter().enumerate() {
            if entry.holders != held[page] {
                return Err(format!(
                    "page {page} counts {} holders and is in {} tables",
                    entry.holders, held[page]
                ));
            }
            if places[page] != usize::from(entry.holders == 0) {
                return Err(format!(
                    "page {page}, held {} times, is free or idle {} times",
                    entry.holders, places[page]
                ));
            }
            hashed += usize::from(entry.hash.is_some());
        }
        if hashed != self.published.len() {
            return Err(format!(
                "{hashed} pages have a hash, {} are published",
                self.published.len()
            ));
        }
        Ok(())
    }
}

/// The hash of a whole page: of its tokens and, through `parent`, of every token before them.
/// LongRoPE's two sets of factors make different keys of the same tokens, so that `long` counts too.
#[must_use]
pub fn page_hash(parent: Option<&Hash>, tokens: &[u32], long: bool) -> Hash {
    let mut hasher = blake3::Hasher::new();
    match parent {
        Some(parent) => hasher.update(parent.as_bytes()),
        None => hasher.update(&[u8::from(long)]),
    };
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(tokens: &[u32]) -> Hash {
        page_hash(None, tokens, false)
    }

    #[test]
    fn a_hash_is_of_all_tokens_before_and_of_the_factors() {
        let first = hash(&[1, 2]);
        let same = page_hash(Some(&first), &[3, 4], false);
        assert_eq!(same, page_hash(Some(&hash(&[1, 2])), &[3, 4], false));
        for other in [
            page_hash(Some(&hash(&[2, 1])), &[3, 4], false),
            page_hash(Some(&first), &[4, 3], false),
            page_hash(Some(&page_hash(None, &[1, 2], true)), &[3, 4], true),
            hash(&[3, 4]),
        ] {
            assert_ne!(same, other);
        }
    }

    #[test]
    fn published_pages_stay_until_they_are_needed_and_the_oldest_goes_first() {
        let mut pages = Pages::new(3, 2);
        let mut tables: Vec<Vec<u32>> = (0..3).map(|_| vec![pages.take().unwrap()]).collect();
        assert_eq!((pages.take(), pages.available()), (None, 0));
        for (i, table) in tables.iter().enumerate() {
            pages.publish(table[0], hash(&[i as u32, 0]));
        }
        for i in [1, 0, 2] {
            pages.release(&mut tables[i]);
        }
        pages.check([]).unwrap();
        assert_eq!(pages.available(), 3);
        // Looking for one is using it: what was let go first, and not looked for since, goes.
        let mut found = vec![pages.find(&hash(&[1, 0])).unwrap()];
        pages.check([&found[..]]).unwrap();
        pages.release(&mut found);
        let taken = [pages.take().unwrap(), pages.take().unwrap()];
        pages.check([&taken[..]]).unwrap();
        assert_eq!(pages.find(&hash(&[0, 0])), None);
        assert_eq!(pages.find(&hash(&[2, 0])), None);
        assert!(pages.find(&hash(&[1, 0])).is_some());
    }

    #[test]
    fn the_end_of_a_sequence_goes_before_its_beginning() {
        let mut pages = Pages::new(2, 2);
        let mut table = vec![pages.take().unwrap(), pages.take().unwrap()];
        let first = hash(&[1, 2]);
        let second = page_hash(Some(&first), &[3, 4], false);
        pages.publish(table[0], first);
        pages.publish(table[1], second);
        pages.release(&mut table);
        pages.take().unwrap();
        assert_eq!(pages.find(&second), None);
        assert!(pages.find(&first).is_some());
    }

    #[test]
    fn a_page_is_shared_and_a_second_one_of_the_same_tokens_is_not_found() {
        let mut pages = Pages::new(2, 2);
        let mut a = vec![pages.take().unwrap()];
        let mut b = vec![pages.take().unwrap()];
        pages.publish(a[0], hash(&[7, 7]));
        pages.publish(b[0], hash(&[7, 7]));
        let mut c = vec![pages.find(&hash(&[7, 7])).unwrap()];
        assert_eq!(c, a);
        pages.check([&a[..], &b, &c]).unwrap();
        assert!(pages.check([&a[..], &b]).is_err());
        pages.release(&mut b);
        pages.release(&mut a);
        pages.check([&c[..]]).unwrap();
        assert_eq!(pages.available(), 1);
        pages.forget();
        assert_eq!(pages.find(&hash(&[7, 7])), None);
        pages.release(&mut c);
        pages.check([]).unwrap();
        assert_eq!(pages.available(), 2);
    }
}
