//! Warnings about runs that end well but are of no use, and a gradient that is not finite is traced to its origin.

use crate::tiny::{Workspace, tokenizer};
use safetensors::SafeTensors;
use serde_json::json;
use std::fs;

#[test]
fn probable_mistakes_are_warned_of() {
    let workspace = Workspace::new();
    let warnings = |set: &[&str], dir: &str| {
        let outcome =
            workspace.train(1, &[set, &[&format!("output.dir={dir}")[..], "train.steps=4"]].concat()).succeeded();
        // The workspace's data has its own.
        let lines = outcome.stderr.lines().filter(|line| line.contains("WARN") && !line.contains(" pairs have "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&[], "plain"), Vec::<String>::new());
    fs::create_dir(workspace.path("models")).unwrap();
    workspace.write("models/config.json", "{}");
    for (set, dir, told) in [
        (&["train.pairs_per_step=40"][..], "many", "train.pairs_per_step = 40 is more than the 11 training pairs"),
        (
            &["train.learning_rate=1e-11", "train.head_learning_rate=1e-3"],
            "slow",
            "train.learning_rate = 1e-11 is far below",
        ),
        (&["train.head_learning_rate=5.0", "loss.objective=reward"], "fast", "the reward loss has risen from"),
        // A head of zeros that never moves.
        (&["train.learning_rate=1e-60"], "ties", "the same reward: it has learned nothing"),
        (&[], "models", "models holds a model (config.json)"),
    ] {
        let found = warnings(set, dir);
        assert!(found.iter().any(|line| line.contains(told)), "{told}: {found:#?}");
    }
}

/// The line that tells where a run of so many steps had the first gradients that are not finite.
fn told(workspace: &Workspace, ranks: usize, set: &[&str]) -> String {
    let outcome = workspace.train(ranks, set);
    let mut lines = outcome.stderr.lines().filter(|line| line.contains("the first gradients that are not finite"));
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_owned(),
        _ => panic!("not one line: {}", outcome.stderr),
    }
}

#[test]
fn the_first_gradient_that_is_not_finite_is_named_with_rank_and_place() {
    let set = ["train.learning_rate=1e30", "train.warmup_steps=0", "train.steps=4"];
    let line = told(&Workspace::new(), 1, &set);
    assert!(line.contains("rank 0 in "), "{line}");

    // A letter of one pair has no finite embedding. Each rank has one pair.
    let pairs = ["Q", "a"].map(|word| json!({"prompt": "b", "chosen": word, "rejected": "c"}).to_string());
    let named = [[0, 1], [1, 0]].map(|order| {
        let workspace = Workspace::new();
        workspace.write("plain.jsonl", &order.map(|pair| format!("{}\n", pairs[pair])).concat());
        break_letter(&workspace, "Q");
        let line = told(
            &workspace,
            2,
            &[
                "data.train=[{ path = 'plain.jsonl' }]",
                "data.shuffle=false",
                "loss.objective=reward",
                "train.pairs_per_step=2",
                "train.steps=1",
            ],
        );
        [0, 1].map(|rank| line.contains(&format!("rank {rank} in ")))
    });
    assert!(named == [[true, false], [false, true]] || named == [[false, true], [true, false]], "{named:?}");
}

/// Makes the embedding of a letter not finite.
fn break_letter(workspace: &Workspace, letter: &str) {
    const NAME: &str = "model.embed_tokens.weight";
    let id = tokenizer()["model"]["vocab"][letter].as_u64().unwrap() as usize;
    let mut file = workspace.read("model/model.safetensors");
    let (length, header) = SafeTensors::read_metadata(&file).unwrap();
    let tensor = header.info(NAME).unwrap();
    let (start, row) = (8 + length + tensor.data_offsets.0, 4 * tensor.shape[1]);
    file[start + id * row..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(workspace.path("model/model.safetensors"), file).unwrap();
}
