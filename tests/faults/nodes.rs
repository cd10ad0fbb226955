//! Two nodes, as network namespaces with a cable between them (`nodes.sh`): they train as one node does, over a slow cable too;
//! when the cable is cut or a node is lost, the ranks on both nodes end within the stated time, with one error.
//!
//! If the system allows no namespaces, these tests say so and test nothing.

use crate::run::{Ended, Outcome, finish, recovers_with, undisturbed_with};
use crate::tiny::{Workspace, with_config};
use std::path::Path;
use std::process::Command;

const SET: [&str; 1] = ["parallel.timeout_seconds=5"];
/// Seconds after the cut until the ranks are over: the limit, and room for a busy machine.
const OVER_AFTER: u64 = 15;

/// A rank on each node; `kbit` is what the cable carries a second, 0 for all it can. None where nodes cannot be set up. Open MPI's
/// own start fails now and then on a busy machine: then once more.
fn on_two_nodes(workspace: &Workspace, fault: &str, kbit: usize) -> Option<Ended> {
    for _ in 0..3 {
        let ended = tried_on_two_nodes(workspace, fault, kbit)?;
        if !ended.printed.contains("orte_init failed") {
            return Some(ended);
        }
        println!("two nodes: Open MPI did not start, once more");
    }
    panic!("Open MPI did not start three times");
}

fn tried_on_two_nodes(workspace: &Workspace, fault: &str, kbit: usize) -> Option<Ended> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/nodes.sh");
    let plain = workspace.command(1, &with_config(&[], &SET));
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "bash"]);
    command.arg(script).args([fault, &kbit.to_string()]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(workspace.path(""));
    for (name, value) in plain.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let ended = finish(workspace, command, None);
    let refused = ended.code == 99 || ended.printed.starts_with("unshare: ");
    if refused {
        println!("two nodes: not tried, no namespaces here: {}", ended.printed);
    }
    (!refused).then_some(ended)
}

/// Seconds from the fault until no rank was left.
#[track_caller]
fn over_after(ended: &Ended) -> u64 {
    let line = ended.printed.lines().find_map(|line| line.strip_prefix("nodes: 0 ranks are left after "));
    let line = line.unwrap_or_else(|| panic!("ranks are left: {}", ended.printed));
    line.trim_end_matches(" s").parse().unwrap()
}

#[test]
fn two_nodes_train_as_one_does_over_a_slow_cable_too() {
    for (name, kbit) in [("a plain", 0), ("a slow", 2000)] {
        let workspace = Workspace::new();
        let Some(ended) = on_two_nodes(&workspace, "none", kbit) else { return };
        assert_eq!(ended.code, 0, "{name} cable: {}", ended.printed);
        Outcome::of(&workspace).expect(undisturbed_with(2, &SET), name);
        println!("two nodes, {name} cable: as one node");
    }
}

#[test]
fn when_the_cable_is_cut_all_ranks_end_in_time_with_one_error() {
    let workspace = Workspace::new();
    let Some(ended) = on_two_nodes(&workspace, "cut", 2000) else { return };
    assert!(ended.printed.contains("nodes: cut after "), "not reached: {}", ended.printed);
    assert_eq!(ended.errors(), 1, "{}", ended.printed);
    let named = "error: waiting for rank 1 at ";
    let why = "its process is stopped, or the network is cut";
    assert!(ended.printed.contains(named) && ended.printed.contains(why), "{}", ended.printed);
    let seconds = over_after(&ended);
    assert!(seconds <= OVER_AFTER, "{seconds} s: {}", ended.printed);
    println!("two nodes, the cable cut: ranks over after {seconds} s of {OVER_AFTER}");
    recovers_with(&workspace, 2, &SET, "the cable was cut");
}

#[test]
fn when_a_node_is_lost_the_job_ends_in_time() {
    let workspace = Workspace::new();
    let Some(ended) = on_two_nodes(&workspace, "lost", 2000) else { return };
    assert!(ended.printed.contains("nodes: lost after "), "not reached: {}", ended.printed);
    // The launcher notices first, and says it in its own words.
    assert!(ended.code != 0 && !ended.printed.contains("mpirun has not ended"), "{}", ended.printed);
    assert!(ended.errors() <= 1, "{}", ended.printed);
    let seconds = over_after(&ended);
    assert!(seconds <= OVER_AFTER, "{seconds} s: {}", ended.printed);
    println!("two nodes, one lost: over after {seconds} s of {OVER_AFTER}");
    recovers_with(&workspace, 2, &SET, "a node was lost");
}
