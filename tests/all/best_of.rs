//! Promise: the expected gold reward of the best of k is the mean over all draws of k answers, and `eval --best-of` gives it for
//! the rewards that `score` writes.

use crate::tiny::{Workspace, parse_lines};
use haf_dist::evaluate::best_of::expected;
use serde_json::json;

/// Over every subset, even among equal rewards.
fn by_trying(rewards: &[f64], gold: &[f64], k: usize) -> f64 {
    let subsets = (0u32..1 << rewards.len()).filter(|subset| subset.count_ones() as usize == k);
    let best = |subset: u32| {
        let of: Vec<usize> = (0..rewards.len()).filter(|answer| subset >> answer & 1 == 1).collect();
        let most = of.iter().map(|&answer| rewards[answer]).fold(f64::NEG_INFINITY, f64::max);
        let top: Vec<f64> = of.iter().filter(|&&answer| rewards[answer] == most).map(|&answer| gold[answer]).collect();
        top.iter().sum::<f64>() / top.len() as f64
    };
    let values: Vec<f64> = subsets.map(best).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn the_expectation_is_that_over_all_draws() {
    let gold = [0.0, 1.0, 0.5, -2.0, 3.0, 1.0, 0.25];
    for rewards in [[0.1, 0.9, -1.0, 2.0, 0.3, 0.4, 0.2], [1.0, 1.0, 1.0, 2.0, 2.0, -1.0, 0.0], [0.0; 7]] {
        let found = expected(&rewards, &gold, 7);
        for (k, found) in (1..=7).zip(found) {
            let wanted = by_trying(&rewards, &gold, k);
            assert!((found - wanted).abs() < 1e-12, "best of {k} by {rewards:?}: {found} is not {wanted}");
        }
    }
    // By itself it picks the most; the control: turned round it picks the least.
    assert_eq!(expected(&gold, &gold, 7)[6], 3.0);
    assert_eq!(expected(&gold.map(|gold| -gold), &gold, 7)[6], -2.0);
}

#[test]
fn eval_gives_it_for_the_rewards_that_score_writes() {
    let workspace = Workspace::trained(1);
    let answers = ["yes", "a cat 1", "the dog", "maybe so."];
    let rows: Vec<_> = (0..4)
        .map(|row| {
            let count = 3 + row % 2;
            let gold: Vec<f64> = (0..count).map(|answer| ((answer * 5 + row * 3) % 7) as f64).collect();
            json!({"prompt": format!("What is {}?", "y".repeat(row)), "responses": answers[..count], "scores": gold})
        })
        .collect();
    workspace.write("best.jsonl", &rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let single = |row: &serde_json::Value| -> String {
        let answers = row["responses"].as_array().unwrap();
        answers.iter().map(|answer| json!({"prompt": row["prompt"], "answer": answer}).to_string() + "\n").collect()
    };
    workspace.write("singles.jsonl", &rows.iter().map(single).collect::<String>());
    let score = ["score", "--checkpoint", "run/step-6", "--data", "singles.jsonl", "--combined"];
    let scored = parse_lines(&workspace.run(1, &score).succeeded().stdout);
    let eval = ["eval", "--checkpoint", "run/step-6", "--best-of", "best.jsonl"];
    for ranks in [1, 2] {
        let lines = parse_lines(&workspace.run(ranks, &[&eval[..], &["--json"]].concat()).succeeded().stdout);
        // Three heads and the gold reward, each for k up to the three answers that all prompts have.
        assert_eq!(lines.len(), 4 * 3, "{lines:?}");
        for line in &lines {
            let name = line["scored_by"].as_str().unwrap();
            let k = line["best_of"].as_u64().unwrap() as usize;
            let mut next = scored.iter();
            let of_row = |row: &serde_json::Value| {
                let gold: Vec<f64> =
                    row["scores"].as_array().unwrap().iter().map(|one| one.as_f64().unwrap()).collect();
                let own: Vec<_> = gold.iter().map(|_| next.next().unwrap()).collect();
                let rewards = own.iter().map(|scored| scored[name].as_f64()).collect::<Option<Vec<_>>>();
                expected(&rewards.unwrap_or_else(|| gold.clone()), &gold, k)[k - 1]
            };
            let wanted = rows.iter().map(of_row).sum::<f64>() / rows.len() as f64;
            let found = line["gold"].as_f64().unwrap();
            assert!((found - wanted).abs() < 1e-9, "{line}: {wanted}");
            assert!(line["low"].as_f64().unwrap() <= found && found <= line["high"].as_f64().unwrap());
        }
    }
    let table = workspace.run(1, &eval).succeeded().stdout;
    assert!(table.contains("best of") && table.contains("combined"), "{table}");
    // A prompt of the dev pairs is said to be one; of other ones nothing is said.
    let dev: Vec<serde_json::Value> = workspace.json_lines("dev.jsonl");
    let is_dev = |row: &&serde_json::Value| dev.iter().any(|pair| pair["prompt"] == row["prompt"]);
    let known = rows.iter().filter(is_dev).count();
    let with_dev = [json!({"prompt": dev[0]["prompt"], "responses": answers, "scores": [1, 2, 3, 4]}), rows[3].clone()];
    workspace.write("dev-best.jsonl", &with_dev.iter().map(|row| format!("{row}\n")).collect::<String>());
    let told = workspace.run(1, &["eval", "--checkpoint", "run/step-6", "--best-of", "dev-best.jsonl"]).succeeded();
    assert!(told.stderr.contains("1 of 2 prompts have a dev prompt of the run"), "{}", told.stderr);
    assert!(known == 0 && !workspace.run(1, &eval).succeeded().stderr.contains("dev prompt"), "{known}");
    for (row, says) in [
        (json!({"prompt": "a", "responses": ["b"], "scores": [1]}), "fewer than two responses"),
        (json!({"prompt": "a", "responses": ["b", "c"], "scores": [1]}), "2 responses and 1 scores"),
        (json!({"prompt": "a", "responses": ["b", "c"], "scores": [1, -1e308]}), "the score -1e308 is beyond 1e100"),
        (json!({"prompt": 1, "responses": ["b", "c"], "scores": [1, 2]}), "`prompt` is missing"),
    ] {
        workspace.write("best.jsonl", &row.to_string());
        let refused = workspace.run(1, &eval);
        assert!(refused.code == 2 && refused.stderr.contains(says), "{}", refused.stderr);
        assert!(refused.stderr.contains("best.jsonl:1"), "{}", refused.stderr);
    }
}
