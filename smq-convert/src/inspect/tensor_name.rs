//! Reads layer and projection off tensor names, and shortens names for display.

/// A name's layer, and what is the same in every layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The first number among the dotted parts, as `3` in `model.layers.3.mlp.down_proj.weight`.
    pub layer: Option<u32>,
    /// The name with every number replaced by `*` and a final `.weight` dropped.
    pub projection: String,
}

/// Where a tensor sits in a model. Later numbers (experts, say) do not set a projection apart.
pub fn place(name: &str) -> Place {
    let mut layer = None;
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let parts: Vec<&str> = stem
        .split('.')
        .map(|part| match number(part) {
            Some(n) => {
                layer = layer.or(Some(n));
                "*"
            }
            None => part,
        })
        .collect();
    Place {
        layer,
        projection: parts.join("."),
    }
}

fn number(part: &str) -> Option<u32> {
    let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| part.parse().ok()).flatten()
}

/// Dotted parts that all of some names begin and end with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shared {
    /// Common beginning, with its final dot.
    pub prefix: String,
    /// Common end, with its first dot.
    pub suffix: String,
}

impl Shared {
    /// What `names` share; at least one part of every name is left. Nothing for fewer than two
    /// names.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let mut split = names.clone().map(|n| n.split('.').collect::<Vec<_>>());
        let Some(first) = split.next() else {
            return Self::default();
        };
        let (mut head, mut tail) = (first.len() - 1, first.len() - 1);
        let mut count = 1;
        for parts in split {
            count += 1;
            let same = |(a, b): &(&&str, &&str)| a == b;
            head = head.min(first.iter().zip(&parts).take_while(same).count());
            let ends = first.iter().rev().zip(parts.iter().rev());
            tail = tail.min(ends.take_while(same).count());
            head = head.min(parts.len() - 1);
            tail = tail.min(parts.len() - 1 - head);
        }
        if count < 2 {
            return Self::default();
        }
        tail = tail.min(first.len() - 1 - head);
        let joined = |parts: &[&str]| parts.iter().map(|p| format!("{p}.")).collect::<String>();
        let ends = &first[first.len() - tail..];
        Shared {
            prefix: joined(&first[..head]),
            suffix: ends.iter().map(|p| format!(".{p}")).collect(),
        }
    }

    /// `name` without what is shared.
    pub(crate) fn strip<'a>(&self, name: &'a str) -> &'a str {
        let inner = name.strip_prefix(self.prefix.as_str());
        inner
            .and_then(|n| n.strip_suffix(self.suffix.as_str()))
            .filter(|n| !n.is_empty())
            .unwrap_or(name)
    }
}

/// At most `width` characters: the middle of a longer text becomes `..`.
pub(crate) fn elide(text: &str, width: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= width || width < 4 {
        return text.to_owned();
    }
    let kept = width - 2;
    let head = kept / 2;
    let tail = chars.len() - (kept - head);
    let part = |chars: &[char]| chars.iter().collect::<String>();
    format!("{}..{}", part(&chars[..head]), part(&chars[tail..]))
}

/// Compares names so that layer 2 comes before layer 10.
pub(crate) fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let key = |part: &str| (number(part).is_none(), number(part), part.to_owned());
    a.split('.').map(key).cmp(b.split('.').map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_layer_and_projection_in_any_naming() {
        let cases = [
            (
                "model.layers.3.mlp.down_proj.weight",
                Some(3),
                "model.layers.*.mlp.down_proj",
            ),
            (
                "transformer.h.11.attn.c_attn.weight",
                Some(11),
                "transformer.h.*.attn.c_attn",
            ),
            (
                "m.layers.2.experts.7.w1.weight",
                Some(2),
                "m.layers.*.experts.*.w1",
            ),
            ("lm_head.weight", None, "lm_head"),
            ("0.weight", Some(0), "*"),
            ("w", None, "w"),
            ("a.99999999999.b", None, "a.99999999999.b"),
            ("a..b.", None, "a..b."),
        ];
        for (name, layer, projection) in cases {
            let projection = projection.to_owned();
            assert_eq!(place(name), Place { layer, projection }, "{name}");
        }
    }

    #[test]
    fn shared_parts_leave_something_of_every_name() {
        let shared = |names: &[&str]| {
            let s = Shared::of(names.iter().copied());
            names
                .iter()
                .map(|n| s.strip(n).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shared(&["m.layers.0.up.weight", "m.layers.1.down.weight"]),
            ["0.up", "1.down"]
        );
        assert_eq!(
            shared(&["m.a.weight", "lm_head.weight"]),
            ["m.a", "lm_head"]
        );
        assert_eq!(shared(&["a.b", "a"]), ["a.b", "a"]);
        assert_eq!(shared(&["a.a", "a.a.a"]), ["a", "a.a"]);
        assert_eq!(shared(&["only.one"]), ["only.one"]);
        assert_eq!(shared(&[]), Vec::<String>::new());
    }

    #[test]
    fn elides_the_middle() {
        assert_eq!(elide("abcdefghij", 10), "abcdefghij");
        assert_eq!(elide("abcdefghijk", 8), "abc..ijk");
        assert_eq!(elide("äöüäöüäöü", 6), "äö..öü");
    }

    #[test]
    fn layers_sort_by_number() {
        let mut names = ["l.10.a", "l.2.a", "l.2", "l.x.a"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["l.2", "l.2.a", "l.10.a", "l.x.a"]);
    }
}
