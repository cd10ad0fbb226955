//! Promise: `score --tokens` parts an answer's implicit reward into its tokens', which add up to it, and says which characters of
//! the answer each stands for.

use crate::tiny::{Workspace, parse_lines};
use serde_json::{Value, json};

fn tokens(line: &Value, key: &str) -> Vec<(usize, usize, f64)> {
    let number = |token: &Value, key: &str| token[key].as_u64().unwrap() as usize;
    let token = |token: &Value| (number(token, "start"), number(token, "end"), token["credit"].as_f64().unwrap());
    line[key].as_array().unwrap().iter().map(token).collect()
}

#[test]
fn credits_add_up_to_the_implicit_reward_and_stand_for_the_answers_characters() {
    let workspace = Workspace::trained(1);
    let answers = ["A cat, 42.", " two  spaces ", "x"];
    let rows = answers.map(|answer| json!({"prompt": "What is x?", "answer": answer}).to_string() + "\n").concat();
    workspace.write("singles.jsonl", &rows);
    for ranks in [1, 2] {
        let score = ["score", "--checkpoint", "run/step-6", "--tokens", "--data"];
        let singles = parse_lines(&workspace.run(ranks, &[&score[..], &["singles.jsonl"]].concat()).succeeded().stdout);
        for (line, answer) in singles.iter().zip(answers) {
            let tokens = tokens(line, "tokens");
            let sum: f64 = tokens.iter().map(|(_, _, credit)| credit).sum();
            assert!((sum - line["implicit"].as_f64().unwrap()).abs() < 1e-5, "{line}");
            // A token a letter, then the EOS, which stands for no character.
            let places: Vec<(usize, usize)> = tokens.iter().map(|(start, end, _)| (*start, *end)).collect();
            let count = answer.chars().count();
            let expected: Vec<(usize, usize)> = (0..count).map(|at| (at, at + 1)).chain([(count, count)]).collect();
            assert_eq!(places, expected, "{answer:?}");
            assert!(tokens.iter().any(|(_, _, credit)| *credit != 0.0), "the control: {line}");
        }
        let pairs = parse_lines(&workspace.run(ranks, &[&score[..], &["test.jsonl"]].concat()).succeeded().stdout);
        for line in &pairs {
            for side in ["chosen", "rejected"] {
                let sum: f64 = tokens(line, &format!("tokens_{side}")).iter().map(|(_, _, credit)| credit).sum();
                assert!((sum - line[format!("implicit_{side}")].as_f64().unwrap()).abs() < 1e-5, "{side}: {line}");
            }
        }
    }
    workspace.train(1, &["loss.objective=reward", "output.dir='reward'"]).succeeded();
    let refused = workspace.run(1, &["score", "--checkpoint", "reward/step-6", "--tokens", "--data", "singles.jsonl"]);
    assert!(refused.code == 2 && refused.stderr.contains("no implicit rewards to part"), "{}", refused.stderr);
}
