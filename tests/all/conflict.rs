//! Promise: `train.conflict_every` measures the cosine of the two losses' gradients, the same on any number of ranks, and changes
//! no bit of the training.

use crate::runs::experts;
use crate::tiny::Workspace;
use serde_json::Value;

fn conflicts(workspace: &Workspace, run: &str) -> Vec<Value> {
    let lines = workspace.json_lines(&format!("{run}/metrics.jsonl"));
    lines.into_iter().filter(|line| line.get("conflict").is_some()).collect()
}

#[test]
fn the_cosine_is_the_same_on_any_number_of_ranks_and_training_is_the_same_to_the_bit() {
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
            for key in ["cosine", "shared_cosine", "reward_norm", "policy_norm"] {
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
        // Without the reward head the product of the gradients is the same, and the reward loss's norm is smaller.
        let of = |line: &Value, key: &str| line[key].as_f64().unwrap();
        let (norm, of_head) = (of(one, "reward_norm"), of(parts(one).last().unwrap(), "reward_norm"));
        let expected = of(one, "cosine") * norm / (norm * norm - of_head * of_head).sqrt();
        assert!(of_head > 0.0 && (of(one, "shared_cosine") - expected).abs() < 1e-6, "{one}: {expected}");
        assert!(one["cosine"].as_f64().unwrap().abs() <= 1.0 && one["policy_norm"].as_f64().unwrap() > 0.0, "{one}");
    }
    let refused = workspace.train(1, &["train.conflict_every=2", "loss.objective=reward", "output.dir='no'"]);
    assert!(refused.code == 2 && refused.stderr.contains("train.conflict_every"), "{}", refused.stderr);
}

#[test]
fn the_loss_that_balances_experts_is_in_neither_gradient() {
    let workspace = experts::workspace("qwen3-moe");
    let line = |name: &str, balance: &str| {
        let dir = format!("output.dir='{name}'");
        let set = ["train.conflict_every=1", "train.learning_rate=1e-7", "train.warmup_steps=0", balance, &dir];
        workspace.train(1, &set).succeeded();
        conflicts(&workspace, name).swap_remove(0)
    };
    // After one step that changes next to nothing. In both gradients the balance loss took the cosine to 0.9999.
    let (without, with) = (line("without", "loss.router_balance=0"), line("with", "loss.router_balance=100"));
    for key in ["cosine", "shared_cosine", "reward_norm", "policy_norm"] {
        let [without, with] = [&without, &with].map(|line| line[key].as_f64().unwrap());
        assert!((without - with).abs() < 1e-2 * (1.0 + without.abs()), "{key}: {without} {with}");
    }
    // The control: it does pull in training.
    let norms = ["without", "with"].map(|run| workspace.steps(run)[0]["grad_norm"].as_f64().unwrap());
    assert!(norms[1] > 2.0 * norms[0], "{norms:?}");
}
