//! Promise: `train.conflict_every` measures the cosine of the two losses' gradients, the same on any number of ranks, and changes
//! no bit of the training.

use crate::tiny::Workspace;
use serde_json::Value;

fn conflicts(workspace: &Workspace, run: &str) -> Vec<Value> {
    let lines = workspace.json_lines(&format!("{run}/metrics.jsonl"));
    lines.into_iter().filter(|line| line.get("conflict").is_some()).collect()
}

#[test]
fn it_is_measured_alike_on_any_number_of_ranks_and_training_is_the_same_to_the_bit() {
    let workspace = Workspace::new();
    let run = |name: &str, ranks: usize, more: &[&str]| {
        let dir = format!("output.dir='{name}'");
        workspace.train(ranks, &[&[&dir[..], "checkpoint.every=6"], more].concat()).succeeded();
    };
    run("without", 1, &[]);
    run("with", 1, &["train.conflict_every=2"]);
    for file in ["model.safetensors", "trainer/masters.safetensors", "trainer/moments.safetensors"] {
        let of = |run: &str| workspace.read(&format!("{run}/step-6/{file}"));
        assert!(of("without") == of("with"), "{file} differs");
    }
    run("two", 2, &["train.conflict_every=2"]);
    let (one, two) = (conflicts(&workspace, "with"), conflicts(&workspace, "two"));
    assert!(conflicts(&workspace, "without").is_empty());
    let steps: Vec<u64> = one.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 6]);
    for (one, two) in one.iter().zip(&two) {
        // The pairs that the run sees, which have references: fewer than sixteen.
        assert!((8..=11).contains(&one["conflict"].as_u64().unwrap()) && one["conflict"] == two["conflict"], "{one}");
        let parts = |line: &Value| line["parts"].as_array().unwrap().clone();
        let names: Vec<Value> = parts(one).iter().map(|part| part["part"].clone()).collect();
        assert_eq!(names.first().unwrap(), "embedding");
        assert_eq!(names.last().unwrap(), "reward head");
        for (one, two) in parts(one).iter().zip(&parts(two)).chain([(one, two)]) {
            for key in ["cosine", "reward_norm", "policy_norm"] {
                let [one, two] = [one, two].map(|line| line[key].as_f64());
                match (one, two) {
                    (Some(one), Some(two)) => {
                        assert!((one - two).abs() < 1e-3 * (1.0 + one.abs()), "{key}: {one} {two}")
                    }
                    _ => assert_eq!(one, two, "{key}"),
                }
            }
        }
        // Sums over parts are the whole; the policy loss has no gradient in the reward head.
        let square = |key: &str| parts(one).iter().map(|part| part[key].as_f64().unwrap().powi(2)).sum::<f64>();
        for key in ["reward_norm", "policy_norm"] {
            assert!((square(key).sqrt() - one[key].as_f64().unwrap()).abs() < 1e-6, "{one}");
        }
        assert_eq!(parts(one).last().unwrap()["policy_norm"], 0.0);
        assert!(one["cosine"].as_f64().unwrap().abs() <= 1.0 && one["policy_norm"].as_f64().unwrap() > 0.0, "{one}");
    }
    let refused = workspace.train(1, &["train.conflict_every=2", "loss.objective=reward", "output.dir='no'"]);
    assert!(refused.code == 2 && refused.stderr.contains("train.conflict_every"), "{}", refused.stderr);
}
