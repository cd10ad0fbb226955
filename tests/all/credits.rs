//! Promise: `score --tokens` divides an answer's implicit reward among its tokens, whose parts add up to it, and gives the
//! characters of the answer that each token stands for.

use crate::tiny::{Workspace, parse_lines, tokenizer};
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
    // What is cut off the answer has no credit; what is cut off the prompt moves no character of the answer.
    let long = "a long answer with many words in it";
    let row = json!({"prompt": "What is xxxxxxxxxxxx?", "answer": long}).to_string();
    workspace.write("long.jsonl", &row);
    let cut = ["score", "--checkpoint", "run/step-6", "--tokens", "--max-length", "40", "--max-prompt-length", "12"];
    let line =
        parse_lines(&workspace.run(1, &[&cut[..], &["--data", "long.jsonl"]].concat()).succeeded().stdout).remove(0);
    let cut_tokens = tokens(&line, "tokens");
    assert_eq!(line["cut"], "prompt and answer", "{line}");
    let places: Vec<(usize, usize)> = cut_tokens.iter().map(|(start, end, _)| (*start, *end)).collect();
    assert!(places.len() > 5 && places.len() < long.len(), "{line}");
    assert_eq!(places, (0..places.len()).map(|at| (at, at + 1)).collect::<Vec<_>>(), "{line}");
    let sum: f64 = cut_tokens.iter().map(|(_, _, credit)| credit).sum();
    assert!((sum - line["implicit"].as_f64().unwrap()).abs() < 1e-5, "{line}");
    workspace.train(1, &["loss.objective=reward", "output.dir='reward'"]).succeeded();
    let refused = workspace.run(1, &["score", "--checkpoint", "reward/step-6", "--tokens", "--data", "singles.jsonl"]);
    assert!(refused.code == 2 && refused.stderr.contains("no implicit rewards to split"), "{}", refused.stderr);
}

#[test]
fn a_character_of_several_tokens_is_named_by_each_of_them() {
    let workspace = Workspace::new();
    // Bytes as letters, a token each: e with an accent has two, and so has the space a name of its own.
    let mut tokenizer = tokenizer();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for (letter, byte) in [(" ", "\u{120}"), ("Q", "\u{c3}"), ("Z", "\u{a9}")] {
        let id = vocabulary.remove(letter).unwrap();
        vocabulary.insert(byte.into(), id);
    }
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split = tokenizer["pre_tokenizer"].take();
    tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [bytes, split]});
    tokenizer["decoder"] = bytes;
    workspace.write("model/tokenizer.json", &tokenizer.to_string());
    workspace.train(1, &[]).succeeded();
    let answer = "a caf\u{e9} x";
    workspace.write("accent.jsonl", &json!({"prompt": "What is x?", "answer": answer}).to_string());
    let score = ["score", "--checkpoint", "run/step-6", "--tokens", "--data", "accent.jsonl"];
    let line = parse_lines(&workspace.run(1, &score).succeeded().stdout).remove(0);
    let tokens = tokens(&line, "tokens");
    // A token more than letters, and the EOS.
    assert_eq!(tokens.len(), answer.chars().count() + 2, "{line}");
    let of_accent: Vec<_> = tokens.iter().filter(|(start, end, _)| (*start..*end).contains(&5)).collect();
    assert_eq!(of_accent.len(), 2, "both tokens name the character: {line}");
    let sum: f64 = tokens.iter().map(|(_, _, credit)| credit).sum();
    assert!((sum - line["implicit"].as_f64().unwrap()).abs() < 1e-5, "{line}");
}
