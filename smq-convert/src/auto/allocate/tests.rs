use proptest::prelude::*;

use super::*;

/// Up to five products of up to five candidates: few enough to try everything.
fn products() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
    let candidate = (0u64..60, 0u32..60).prop_map(|(bytes, error)| Candidate {
        bytes,
        error: f64::from(error) / 4.0, // sums are exact
    });
    prop::collection::vec(prop::collection::vec(candidate, 1..6), 1..6)
}

/// Every choice there is.
fn all_choices(products: &[Vec<Candidate>]) -> Vec<Vec<usize>> {
    products.iter().fold(vec![Vec::new()], |choices, product| {
        let longer = |choice: &Vec<usize>| {
            let choice = choice.clone();
            (0..product.len()).map(move |next| [&choice[..], &[next]].concat())
        };
        choices.iter().flat_map(longer).collect()
    })
}

/// The naive twin: the best of all.
fn optimum(products: &[Vec<Candidate>], bound: Bound) -> Option<Candidate> {
    let totals = all_choices(products)
        .into_iter()
        .map(|choice| total(products, &choice));
    totals
        .filter(|total| bound.allows(*total))
        .min_by(|a, b| bound.compare(*a, *b))
}

/// The largest step of any hull, as the bound's other side has it.
fn largest_step(products: &[Vec<Candidate>], bound: Bound) -> f64 {
    let mut largest = 0.0f64;
    for product in products {
        for pair in hull(product).windows(2) {
            let (from, to) = (product[pair[0]], product[pair[1]]);
            largest = largest.max(match bound {
                Bound::Bytes(_) => from.error - to.error,
                Bound::Error(_) => (to.bytes - from.bytes) as f64,
            });
        }
    }
    largest
}

fn check(products: &[Vec<Candidate>], bound: Bound) -> Result<(), TestCaseError> {
    let (found, best) = (allocate(products, bound), optimum(products, bound));
    prop_assert_eq!(found.is_some(), best.is_some());
    let (Some(found), Some(best)) = (found, best) else {
        return Ok(());
    };
    let got = total(products, &found);
    prop_assert!(bound.allows(got));
    // The linear relaxation lies between the optimum and the last whole step.
    let over = match bound {
        Bound::Bytes(_) => got.error - best.error,
        Bound::Error(_) => got.bytes as f64 - best.bytes as f64,
    };
    prop_assert!(
        (0.0..=largest_step(products, bound)).contains(&over),
        "{} over the optimum {:?}",
        over,
        best
    );
    for (product, candidates) in products.iter().enumerate() {
        for candidate in 0..candidates.len() {
            let mut changed = found.clone();
            changed[product] = candidate;
            let changed = total(products, &changed);
            prop_assert!(!bound.allows(changed) || bound.compare(changed, got).is_ge());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn within_the_bound_and_a_step_of_the_optimum(products in products(), limit in 0u64..200) {
        check(&products, Bound::Bytes(limit))?;
        check(&products, Bound::Error(limit as f64 / 4.0))?;
    }

    #[test]
    fn with_room_for_all_each_gets_its_least_error(products in products()) {
        // With room for everything, everything has its least error, in the fewest bytes that have
        // it.
        let found = allocate(&products, Bound::Bytes(u64::MAX)).unwrap();
        for (product, index) in products.iter().zip(found) {
            let least = product.iter().map(|c| c.error).fold(f64::INFINITY, f64::min);
            let bytes = product.iter().filter(|c| c.error == least).map(|c| c.bytes).min();
            prop_assert_eq!((product[index].error, Some(product[index].bytes)), (least, bytes));
        }
    }
}

#[test]
fn hulls_leave_out_what_a_mixture_beats() {
    let of = |points: &[(u64, f64)]| -> Vec<usize> {
        let candidates: Vec<_> = points
            .iter()
            .map(|&(bytes, error)| Candidate { bytes, error })
            .collect();
        hull(&candidates)
    };
    assert_eq!(of(&[(10, 8.0), (11, 7.9), (12, 4.0), (20, 0.0)]), [0, 2, 3]);
    assert_eq!(of(&[(12, 4.0), (10, 8.0), (11, 9.0)]), [1, 0]);
    assert_eq!(of(&[(10, 1.0), (20, 1.0), (10, 1.0)]), [0]);
    assert_eq!(
        of(&[(10, 2.0), (11, 1.0), (12, 0.0)]),
        [0, 2],
        "on the line"
    );
}

#[test]
fn ties_go_to_what_comes_first() {
    let product = vec![
        Candidate {
            bytes: 1,
            error: 4.0,
        },
        Candidate {
            bytes: 3,
            error: 1.0,
        },
    ];
    let products = vec![product.clone(), product.clone(), product];
    assert_eq!(allocate(&products, Bound::Bytes(7)), Some(vec![1, 1, 0]));
    assert_eq!(allocate(&products, Bound::Error(6.0)), Some(vec![1, 1, 0]));
    assert_eq!(allocate(&products, Bound::Bytes(2)), None);
    assert_eq!(allocate(&products, Bound::Error(2.9)), None);
}
