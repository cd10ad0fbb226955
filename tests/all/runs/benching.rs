//! `haf-dist bench` takes the pairs that it reports, counts their work by the formula, and refuses what it cannot time. Its
//! measurements are not tested.

use crate::tiny::{VOCABULARY, Workspace, parse_lines};
use haf_dist::config::{TemplateKind, Truncation};
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoder, Rules};
use haf_dist::data::verbatim::first_pairs;
use haf_dist::error::Result;
use serde_json::{Value, json};

/// One-letter tokens: a prompt of 5 and answers of 4 and 3 with the EOS, the first letter common to both.
fn write_pairs(workspace: &Workspace, count: usize) {
    let row = json!({ "prompt": "abcde", "chosen": "fgh", "rejected": "fi" });
    workspace.write("pairs.jsonl", &format!("{row}\n").repeat(count));
}

fn bench(workspace: &Workspace, ranks: usize, more: &[&str]) -> Value {
    let fixed = ["bench", "--model", "model", "--pairs", "pairs.jsonl", "--dtype", "f32", "--threads", "1", "--json"];
    let outcome = workspace.run(ranks, &[&fixed[..], more].concat()).succeeded();
    let mut lines = parse_lines(&outcome.stdout);
    assert_eq!(lines.len(), 1, "{}", outcome.stdout);
    lines.remove(0)
}

/// Promise: the table shows what was planned beside what was measured. Other trainers' words for a loss and a precision are known.
#[test]
fn the_table_has_the_plan_too() {
    let workspace = Workspace::new();
    write_pairs(&workspace, 32);
    let words = ["--dtype", "float32", "--objective", "dpo", "--count", "16", "--threads", "1"];
    let outcome =
        workspace.run(1, &[&["bench", "--model", "model", "--pairs", "pairs.jsonl"], &words[..]].concat()).succeeded();
    for says in ["Whole training steps", "1 x 1, f32", "| planned peak memory ", "| planned pairs per second "] {
        assert!(outcome.stdout.contains(says), "{says}: {}", outcome.stdout);
    }
}

#[test]
fn a_line_of_json_has_the_figures_of_the_pairs_asked_for() {
    let workspace = Workspace::new();
    write_pairs(&workspace, 64);
    let shared = bench(&workspace, 1, &["--count", "32"]);
    for key in ["pairs_per_s", "seconds", "peak_rss_gb", "tokens_per_s", "useful_flops_per_s", "matmul_flops_per_s"] {
        assert!(shared[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {shared}");
    }
    let number = |report: &Value, key: &str| report[key].as_f64().unwrap();
    assert_eq!(
        (&shared["pairs"], &shared["ranks"], &shared["losses"].as_array().unwrap().len()),
        (&json!(32), &json!(1), &2)
    );
    // P + A + B = 6 + 3 + 2 tokens a pair, computed once; 2 P + A + B without sharing.
    let tokens = number(&shared, "tokens_per_s") * number(&shared, "seconds");
    assert!((tokens / (32.0 * 11.0) - 1.0).abs() < 1e-9, "{tokens}");
    let unshared = bench(&workspace, 1, &["--count", "32", "--unshared"]);
    let tokens = number(&unshared, "tokens_per_s") * number(&unshared, "seconds");
    assert!((tokens / (32.0 * 17.0) - 1.0).abs() < 1e-9, "{tokens}");
    // The same training either way.
    for (shared, unshared) in shared["losses"].as_array().unwrap().iter().zip(unshared["losses"].as_array().unwrap()) {
        assert!((shared.as_f64().unwrap() - unshared.as_f64().unwrap()).abs() < 1e-5);
    }
    // The formula of the head of the program, from config.json; attention: [P | A] sees 9 * 10 / 2 rows, B 2 * 6 + 3.
    let config: Value = serde_json::from_slice(&workspace.read("model/config.json")).unwrap();
    let [layers, width, mlp, heads, key_heads, vocabulary] = [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ]
    .map(|key| config[key].as_f64().unwrap());
    let head_width = config["head_dim"].as_f64().unwrap_or(width / heads);
    let block = 2.0 * width + 2.0 * (heads + key_heads) * head_width * width + 3.0 * mlp * width;
    let backbone = layers * block + width;
    let seen = 45.0 + 15.0;
    let without_head = 32.0 * (6.0 * backbone * 11.0 + 12.0 * layers * heads * head_width * seen);
    let with_head = without_head + 32.0 * 6.0 * vocabulary * width * 5.0;
    let useful = |report: &Value| number(report, "useful_flops_per_s") * number(report, "seconds");
    assert!((useful(&shared) / with_head - 1.0).abs() < 1e-9, "{} is not {with_head}", useful(&shared));
    // The reward alone: the vocabulary takes no part.
    let reward = bench(&workspace, 1, &["--count", "32", "--objective", "reward"]);
    assert!((useful(&reward) / without_head - 1.0).abs() < 1e-9);
}

#[test]
fn two_ranks_take_twice_the_pairs_a_step() {
    let workspace = Workspace::new();
    write_pairs(&workspace, 64);
    let report = bench(&workspace, 2, &["--count", "32"]);
    assert_eq!((&report["ranks"], report["losses"].as_array().unwrap().len()), (&json!(2), 1));
}

#[test]
fn too_few_pairs_and_rows_of_another_shape_are_refused() {
    let workspace = Workspace::new();
    write_pairs(&workspace, 20);
    for (pairs, expected) in
        [("pairs.jsonl", "20 usable pairs, 48 are needed"), ("other.jsonl", "other.jsonl:1: neither")]
    {
        workspace.write("other.jsonl", "{\"text\": \"abc\"}\n");
        let outcome = workspace.run(1, &["bench", "--model", "model", "--pairs", pairs, "--dtype", "f32"]);
        let errors = outcome.errors();
        assert!(errors.len() == 1 && errors[0].contains(expected), "{errors:?}");
        assert_eq!(outcome.code, 2);
    }
}

/// What `first_pairs` keeps of some rows, and the tokens of all of it.
fn kept(workspace: &Workspace, rows: &[Value], count: usize) -> Result<Vec<OwnedPair>> {
    let model = workspace.path("model");
    let encoder = Encoder::open(&model, Rules::new(TemplateKind::Plain, 12, 11, Truncation::Drop), VOCABULARY).unwrap();
    workspace.write("rows.jsonl", &rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let pairs = first_pairs(&workspace.path("rows.jsonl"), &encoder, count)?;
    Ok(pairs.into_iter().map(|pair| pair.pair).collect())
}

#[test]
fn the_pairs_and_tokens_are_those_that_the_peers_are_timed_on() {
    let workspace = Workspace::new();
    let row = |prompt: &str, chosen: &str, rejected: &str| json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected });
    let transcript = |chosen: &str, rejected: &str| json!({ "chosen": chosen, "rejected": rejected });
    let rows = [
        row("ab", "cde", "cf"),
        // Nothing but a space is an answer; nothing at all, too.
        row("ab", " ", "c"),
        row("ab", "", "c"),
        row("ab", "cd", "cd"),
        // 12 tokens with the EOS, and 13.
        row("abcdefgh", "ijk", "l"),
        row("abcdefgh", "ijkl", "m"),
        transcript("a\n\nAssistant: b", "z\n\nAssistant: c"),
    ];
    let pairs = kept(&workspace, &rows, 4).unwrap();
    let letter = |pair: &OwnedPair| pair.tokens.clone();
    let [a, b, c] = [0, 1, 2].map(|place| pairs[0].tokens[place]);
    let end = *pairs[0].tokens.last().unwrap();
    // Prompt and common letter, then [d e EOS], then [f EOS]; no BOS.
    assert_eq!((pairs[0].spans[0].start, pairs[0].prefix, pairs[0].chosen, pairs[0].rejected), (2, 3, 3, 2));
    assert_eq!(letter(&pairs[0]), [a, b, c, c + 1, c + 2, end, c + 3, end]);
    assert_eq!((pairs[1].prefix, pairs[1].chosen, pairs[1].rejected), (2, 2, 2));
    assert_eq!(letter(&pairs[2]), [a, b, end, c, end]);
    assert_eq!((pairs[3].prefix, pairs[3].chosen), (8, 4));
    // There is no fifth.
    let error = kept(&workspace, &rows, 5).unwrap_err();
    assert!(error.message.contains("4 usable pairs, 5 are needed") && error.hint.is_some(), "{error}");
    // A common prompt is told by the last turn's marker, which is its end.
    let dialogue = [transcript("a\n\nAssistant:b", "a\n\nAssistant:c")];
    let model = workspace.path("model");
    let encoder = Encoder::open(&model, Rules::new(TemplateKind::Plain, 64, 32, Truncation::Drop), VOCABULARY).unwrap();
    workspace.write("rows.jsonl", &format!("{}\n", dialogue[0]));
    let pair = first_pairs(&workspace.path("rows.jsonl"), &encoder, 1).unwrap().remove(0).pair;
    assert_eq!((pair.chosen, pair.rejected, pair.tokens[pair.prefix], pair.tokens[0]), (2, 2, b, a));
}
