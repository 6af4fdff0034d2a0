use std::collections::HashSet;
use std::path::Path;

use super::*;

fn contract(name: &str) -> Contract {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Contract::load(&root.join(name)).unwrap()
}

fn full() -> Contract {
    contract("spec/experiment.toml")
}

fn only(ids: &[&str]) -> Selection {
    Selection {
        only: ids.iter().map(|&id| id.to_owned()).collect(),
        ..Selection::default()
    }
}

/// Ids of all cells that a plan's processes measure.
fn cells(plan: &Plan) -> Vec<String> {
    let processes = plan.groups.iter().flat_map(|g| &g.processes);
    processes
        .flat_map(|p| match &p.kind {
            Kind::Energy => vec![energy_id(&p.config)],
            Kind::Cells {
                workloads, repeat, ..
            } => {
                let id = |w: &Workload| cell_id(&p.config, *w, *repeat);
                workloads.iter().map(id).collect()
            }
        })
        .collect()
}

#[test]
fn everything_once_and_equal_weights_share_a_file() {
    let contract = full();
    let plan = Plan::new(&contract, &Selection::default(), 131_072, None, |_| false);
    let supported = |c: &&Config| {
        !matches!(
            conversion(c, &contract.quantization),
            Conversion::Unsupported(_)
        )
    };
    let configs = contract.configs.iter().filter(supported).count();
    let ids = cells(&plan);
    // 3 prompts x 2 outputs x 3 repeats and an energy run each; 2 long prompts x 3 repeats of 3
    // configs.
    assert_eq!(ids.len(), configs * (18 + 1) + 18);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    assert_eq!(plan.errors.len(), 1 + 4 * 11);
    let of = |g: &Group| {
        g.configs
            .iter()
            .map(|c| c.id.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let groups: Vec<_> = plan.groups.iter().map(of).collect();
    assert!(groups.contains(&"C4 C5-E5M5".to_owned()), "{groups:?}");
    assert_eq!(groups[0], "C0");
    assert!(matches!(plan.groups[0].conversion, Conversion::Checkpoint));
    let absent = contract.configs.len() - configs;
    assert_eq!(plan.absent.len(), absent, "{:?}", plan.absent);
}

#[test]
fn what_is_done_is_left_out_and_the_rest_of_a_process_stays() {
    let contract = full();
    let all = Plan::new(&contract, &only(&["C4"]), 131_072, None, |_| false);
    let ids = cells(&all);
    for known in 0..=ids.len() {
        let done: HashSet<&str> = ids[..known].iter().map(String::as_str).collect();
        let rest = Plan::new(&contract, &only(&["C4"]), 131_072, None, |id| {
            done.contains(id)
        });
        assert_eq!(cells(&rest), ids[known..]);
    }
    let nothing = Plan::new(&contract, &Selection::default(), 131_072, None, |_| true);
    assert!(
        nothing.groups.is_empty() && nothing.errors.is_empty(),
        "{nothing:?}"
    );
}

#[test]
fn selections_select() {
    let contract = full();
    let of = |selection: &Selection| Plan::new(&contract, selection, 131_072, None, |_| false);
    let smoke = Selection {
        repeats: Some(1),
        ..only(&["C3", "C4"])
    };
    // 6 workloads and energy each, and C4's two long prompts; no scale errors, which are of no
    // config.
    let plan = of(&smoke);
    assert_eq!((cells(&plan).len(), plan.errors.len()), (2 * 7 + 2, 0));
    let errors = Selection {
        sections: vec![Section::ScaleErrors],
        ..Selection::default()
    };
    let plan = of(&errors);
    assert_eq!((plan.groups.len(), plan.errors.len()), (0, 45));
    let energy = Selection {
        sections: vec![Section::Energy],
        ..only(&["C5-E5M5"])
    };
    assert_eq!(cells(&of(&energy)), ["C5-E5M5/energy"]);
}

#[test]
fn what_cannot_be_measured_says_why() {
    let contract = full();
    let plan = Plan::new(&contract, &only(&["C0"]), 2100, Some("no NVML"), |_| false);
    let find = |id: &str| {
        plan.absent
            .iter()
            .find(|(i, _)| i == id)
            .map(|a| a.1.as_str())
    };
    assert_eq!(find("C0/energy"), Some("no NVML"));
    assert_eq!(
        find("C0/p2048/o64"),
        Some("2048 prompt and 64 output tokens exceed the model's longest context of 2100")
    );
    assert!(find("C0/p8192/o64").is_some() && find("C0/p512/o256").is_none());
    // 128 and 512 with both outputs fit, three times.
    assert_eq!(cells(&plan).len(), 12);
}
