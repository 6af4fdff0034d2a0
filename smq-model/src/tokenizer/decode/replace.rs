//! Replacing a text within another one that arrives in parts.

/// Replaces one text by another. What may be the beginning of the one is kept.
#[derive(Clone)]
pub(super) struct Replacer {
    from: String,
    to: String,
    kept: String,
}

impl Replacer {
    pub(super) fn new(from: &str, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            kept: String::new(),
        }
    }

    /// The text that this part settles.
    pub(super) fn push(&mut self, part: &str) -> String {
        self.kept.push_str(part);
        let mut text = String::new();
        let mut rest = self.kept.as_str();
        while let Some((before, after)) = rest.split_once(&self.from) {
            text.push_str(before);
            text.push_str(&self.to);
            rest = after;
        }
        // The longest end that the text to replace begins with.
        let longest = rest.len().saturating_sub(self.from.len() - 1);
        let begins = |at: &usize| {
            let end = rest.get(*at..);
            end.is_some_and(|end| self.from.starts_with(end))
        };
        let cut = (longest..=rest.len()).find(begins).unwrap_or(rest.len());
        text.push_str(&rest[..cut]);
        self.kept = rest[cut..].to_owned();
        text
    }

    /// What was kept and is no beginning of anything.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_replaced_as_the_whole() {
        for from in ["ab", "aab", "a", " ' ", "漢a"] {
            for text in [
                "",
                "aaab",
                "abababa",
                "aabaaab",
                "  '  ' ' x",
                "漢漢aa漢",
                " n't",
            ] {
                for width in 1..4 {
                    let mut replacer = Replacer::new(from, "<>");
                    let chars: Vec<char> = text.chars().collect();
                    let parts = chars.chunks(width).map(|part| {
                        let part: String = part.iter().collect();
                        replacer.push(&part)
                    });
                    let mut replaced: String = parts.collect();
                    replaced += &replacer.finish();
                    assert_eq!(replaced, text.replace(from, "<>"), "{from:?} in {text:?}");
                }
            }
        }
    }
}
