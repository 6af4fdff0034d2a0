//! One candidate for each product under a bound on all together: the multiple-choice knapsack
//! problem, solved greedily on each product's lower convex hull (H. Everett, "Generalized Lagrange
//! multiplier method", Operations Research 11, 1963).
//!
//! Nothing here is random or depends on threads, and every tie goes to fewer bytes, then to what
//! comes first.

use std::cmp::Ordering;

/// One way to store a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    /// Bytes that the tensor takes when it is stored so.
    pub bytes: u64,
    /// What it costs: a squared error, or nats.
    pub error: f64,
}

/// What all products together may take or cost; the other side is made as small as it gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    /// At most so many bytes.
    Bytes(u64),
    /// At most this error.
    Error(f64),
}

impl Bound {
    fn allows(self, total: Candidate) -> bool {
        match self {
            Bound::Bytes(limit) => total.bytes <= limit,
            Bound::Error(limit) => total.error <= limit,
        }
    }

    /// Less where `a` is better than `b`, both being allowed.
    pub(super) fn compare(self, a: Candidate, b: Candidate) -> Ordering {
        let (bytes, error) = (a.bytes.cmp(&b.bytes), a.error.total_cmp(&b.error));
        match self {
            Bound::Bytes(_) => error.then(bytes),
            Bound::Error(_) => bytes.then(error),
        }
    }
}

/// What is added to nothing.
const NOTHING: Candidate = Candidate {
    bytes: 0,
    error: 0.0,
};

/// From one candidate of a product to its next one on the hull.
#[derive(Debug, Clone, Copy)]
struct Step {
    product: usize,
    to: usize,
    /// Error saved for each byte.
    slope: f64,
}

/// The index of the candidate that each product gets; `None` where no choice keeps the bound. Every
/// product has a candidate.
///
/// The error (or, of [`Bound::Error`], the bytes) is over the optimum by less than the largest step
/// of a hull, and no change of a single product that keeps the bound makes it smaller.
#[must_use]
pub(super) fn allocate(products: &[Vec<Candidate>], bound: Bound) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = products.iter().map(|p| hull(p)).collect();
    let mut chosen: Vec<usize> = hulls
        .iter()
        .map(|h| h.first().copied())
        .collect::<Option<_>>()?;
    let mut blocked = vec![false; products.len()];
    let mut sums = Sums::of(products, &chosen);
    for step in steps(products, &hulls) {
        let goes_on = match bound {
            Bound::Bytes(_) => !blocked[step.product],
            Bound::Error(_) => !bound.allows(sums.total()),
        };
        if !goes_on {
            continue;
        }
        let before = std::mem::replace(&mut chosen[step.product], step.to);
        sums.set(step.product, products[step.product][step.to]);
        if matches!(bound, Bound::Bytes(_)) && !bound.allows(sums.total()) {
            // What comes later of this product is larger still; another's step may fit.
            chosen[step.product] = before;
            sums.set(step.product, products[step.product][before]);
            blocked[step.product] = true;
        }
    }
    if !bound.allows(sums.total()) {
        return None;
    }
    while let Some((product, candidate)) = best_change(products, &chosen, &mut sums, bound) {
        chosen[product] = candidate;
        sums.set(product, products[product][candidate]);
    }
    Some(chosen)
}

/// The sum over all products, of which one can be changed without adding all of them up again: a
/// tree of sums of two. The same candidates give the same sum, in whatever order they were set, so
/// that rounding depends on nothing else.
struct Sums {
    /// From 1, the root, two below each; products from `leaves` on.
    tree: Vec<Candidate>,
    leaves: usize,
}

impl Sums {
    fn of(products: &[Vec<Candidate>], chosen: &[usize]) -> Self {
        let leaves = products.len().next_power_of_two();
        let mut tree = vec![NOTHING; 2 * leaves];
        for (product, (candidates, &index)) in products.iter().zip(chosen).enumerate() {
            tree[leaves + product] = candidates[index];
        }
        let mut sums = Self { tree, leaves };
        (1..leaves).rev().for_each(|node| sums.add_up(node));
        sums
    }

    fn total(&self) -> Candidate {
        self.tree[1]
    }

    fn set(&mut self, product: usize, candidate: Candidate) {
        let mut node = self.leaves + product;
        self.tree[node] = candidate;
        while node > 1 {
            node /= 2;
            self.add_up(node);
        }
    }

    fn add_up(&mut self, node: usize) {
        let (a, b) = (self.tree[2 * node], self.tree[2 * node + 1]);
        self.tree[node] = Candidate {
            bytes: a.bytes + b.bytes,
            error: a.error + b.error,
        };
    }
}

/// Candidates on the lower convex hull of (bytes, error), fewest bytes first, each with less error
/// than the one before.
fn hull(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&candidates[a], &candidates[b]);
        a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error))
    });
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        if let Some(&last) = hull.last()
            && candidates[next].error >= candidates[last].error
        {
            continue;
        }
        while let [.., a, b] = hull[..]
            && slope(&candidates[a], &candidates[b]) <= slope(&candidates[b], &candidates[next])
        {
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// Error saved for each byte more; `to` is larger.
fn slope(from: &Candidate, to: &Candidate) -> f64 {
    (from.error - to.error) / (to.bytes - from.bytes) as f64
}

/// All steps of all hulls, the most worthwhile first; those of one product stay in order, being
/// convex.
fn steps(products: &[Vec<Candidate>], hulls: &[Vec<usize>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (product, hull) in hulls.iter().enumerate() {
        steps.extend(hull.windows(2).map(|pair| Step {
            product,
            to: pair[1],
            slope: slope(&products[product][pair[0]], &products[product][pair[1]]),
        }));
    }
    // The sort is stable: ties keep the order of products and of steps.
    steps.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    steps
}

/// The single product's change that helps most and keeps the bound.
fn best_change(
    products: &[Vec<Candidate>],
    chosen: &[usize],
    sums: &mut Sums,
    bound: Bound,
) -> Option<(usize, usize)> {
    let mut best = sums.total();
    let mut found = None;
    for (product, candidates) in products.iter().enumerate() {
        let now = candidates[chosen[product]];
        for (index, &candidate) in candidates.iter().enumerate() {
            // Every change that helps makes one of the two less.
            if candidate.bytes >= now.bytes && candidate.error >= now.error {
                continue;
            }
            sums.set(product, candidate);
            let changed = sums.total();
            if bound.allows(changed) && bound.compare(changed, best) == Ordering::Less {
                (best, found) = (changed, Some((product, index)));
            }
        }
        sums.set(product, now);
    }
    found
}

/// Sums over all products, in order.
pub(super) fn total(products: &[Vec<Candidate>], chosen: &[usize]) -> Candidate {
    let mut sum = NOTHING;
    for (candidates, &index) in products.iter().zip(chosen) {
        sum.bytes += candidates[index].bytes;
        sum.error += candidates[index].error;
    }
    sum
}

#[cfg(test)]
mod tests;
