//! Where the names of points and lines go, so that none covers another.

/// Width of a character of a name, at most, pixels.
const NAME_CHAR: i32 = 7;
/// Half the height of a name, pixels.
const NAME_HALF: i32 = 7;
/// Length of the pieces that a line is cut into, pixels.
const PIECE: i32 = 4;
/// Height of a line of text.
pub(super) const LINE: i32 = 16;

/// Where labels of lines at these heights go, which are sorted: a line of text apart, and within
/// `down` where they all fit.
pub(super) fn spread(heights: &[i32], down: &std::ops::Range<i32>) -> Vec<i32> {
    let mut at: Vec<i32> = heights.to_vec();
    for i in 1..at.len() {
        at[i] = at[i].max(at[i - 1] + LINE);
    }
    let mut most = down.end;
    for height in at.iter_mut().rev() {
        *height = (*height).min(most);
        most = *height - LINE;
    }
    at
}

/// Pixels that text or a marker covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    pub left: i32,
    pub right: i32,
    pub top: i32,
    pub bottom: i32,
}

impl Label {
    pub(super) fn starting(text: &str, (x, y): (i32, i32)) -> Self {
        let width = NAME_CHAR * text.chars().count() as i32;
        Self {
            left: x,
            right: x + width,
            top: y - NAME_HALF,
            bottom: y + NAME_HALF,
        }
    }

    pub(super) fn ending(text: &str, (x, y): (i32, i32)) -> Self {
        let width = NAME_CHAR * text.chars().count() as i32;
        Self::starting(text, (x - width, y))
    }

    /// The room that a marker takes around its point.
    pub(super) fn around((x, y): (i32, i32)) -> Self {
        Self {
            left: x - 5,
            right: x + 5,
            top: y - 5,
            bottom: y + 5,
        }
    }

    /// What a straight line covers: a chain of small pieces, since a name may be beside it.
    pub(super) fn along(from: (i32, i32), to: (i32, i32)) -> impl Iterator<Item = Self> {
        let (across, down) = (to.0 - from.0, to.1 - from.1);
        let pieces = (across.abs().max(down.abs()) / PIECE).max(1);
        (0..=pieces).map(move |i| {
            let (x, y) = (from.0 + across * i / pieces, from.1 + down * i / pieces);
            Self {
                left: x - PIECE / 2,
                right: x + PIECE / 2,
                top: y - PIECE / 2,
                bottom: y + PIECE / 2,
            }
        })
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

/// Room for a point's name: right of it, left, above, below, or at a corner; none where everything
/// is taken.
pub(super) fn place(
    name: &str,
    (x, y): (i32, i32),
    (across, down): (&std::ops::Range<i32>, &std::ops::Range<i32>),
    taken: &[Label],
) -> Option<Label> {
    let half = NAME_CHAR * name.chars().count() as i32 / 2;
    [
        Label::starting(name, (x + 7, y)),
        Label::ending(name, (x - 7, y)),
        Label::starting(name, (x - half, y - 13)),
        Label::starting(name, (x - half, y + 13)),
        Label::starting(name, (x + 7, y - 13)),
        Label::starting(name, (x + 7, y + 13)),
        Label::ending(name, (x - 7, y - 13)),
        Label::ending(name, (x - 7, y + 13)),
        Label::starting(name, (x - 7, y - 13)),
        Label::ending(name, (x + 7, y - 13)),
        Label::starting(name, (x - half, y - 24)),
        Label::starting(name, (x - half, y + 24)),
        Label::ending(name, (x - 7, y - 24)),
        Label::ending(name, (x - 7, y + 24)),
        Label::starting(name, (x + 7, y - 24)),
        Label::starting(name, (x + 7, y + 24)),
    ]
    .into_iter()
    .find(|label| {
        let inside = label.left >= across.start && label.right <= across.end;
        let inside = inside && label.top >= down.start && label.bottom <= down.end;
        inside && !taken.iter().any(|t| t.overlaps(label))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_cover_each_other_or_a_marker() {
        let (across, down) = (0..200, 0..100);
        let points: Vec<(i32, i32)> = (0..12).map(|i| (20 + 9 * i, 50 + 4 * (i % 3))).collect();
        let mut taken: Vec<Label> = points.iter().map(|&p| Label::around(p)).collect();
        let markers = taken.len();
        for &p in &points {
            taken.extend(place("E5M3", p, (&across, &down), &taken.clone()));
        }
        assert!(taken.len() > markers, "some have room");
        for (i, a) in taken.iter().enumerate().skip(markers) {
            assert!(a.left >= 0 && a.right <= 200 && a.top >= 0 && a.bottom <= 100);
            assert!(taken[..i].iter().all(|b| !a.overlaps(b)), "{a:?}");
        }
        assert_eq!(
            place(
                "too long a name for this",
                (100, 50),
                (&(90..110), &down),
                &[]
            ),
            None
        );
    }

    #[test]
    fn names_keep_off_lines() {
        let (across, down) = (0..200, 0..100);
        // Straight through the room right of the point, and then left of it too.
        let right: Vec<Label> = Label::along((100, 50), (180, 52)).collect();
        let label = place("E5M3", (100, 50), (&across, &down), &right).unwrap();
        assert_eq!(label, Label::ending("E5M3", (93, 50)));
        let both: Vec<Label> = Label::along((20, 50), (180, 50)).collect();
        let label = place("E5M3", (100, 50), (&across, &down), &both).unwrap();
        assert!(label.bottom <= 48 || label.top >= 52, "{label:?}");
    }

    #[test]
    fn labels_of_lines_are_a_line_apart() {
        let at = spread(&[10, 12, 60, 95, 96, 97], &(0..100));
        assert_eq!(at, [10, 26, 52, 68, 84, 100]);
        assert_eq!(spread(&[], &(0..100)), [0; 0]);
    }
}
