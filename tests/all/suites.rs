//! Promise: a benchmark's figure is its authors' to 1e-9, and `eval --suite` computes it from the rewards that `score` gives the
//! answers, on any number of ranks, whole and cut.
//!
//! The fixtures in tests/suites/ are rows and scores of our own with the results of the authors' code, written by the scripts
//! in that folder.

use crate::tiny::{Workspace, parse_lines, tokenizer, with_config};
use clap::ValueEnum;
use haf_dist::evaluate::suites::report::{Cutting, lines};
use haf_dist::evaluate::suites::{Item, Suite};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

const NOTHING_CUT: Cutting = Cutting { limit: 2048, cut: 0, beyond: 0 };

/// null stands for NaN.
#[derive(Deserialize)]
struct Fixture {
    name: String,
    rows: Vec<Value>,
    scores: Vec<Vec<Option<f64>>>,
    expected: BTreeMap<String, Option<f64>>,
}

fn fixtures(file: &str) -> Vec<Fixture> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suites").join(file).with_extension("json");
    let text = std::fs::read_to_string(&path);
    serde_json::from_str(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

/// Every suite with the name of its fixtures.
fn suites() -> impl Iterator<Item = (Suite, String)> {
    Suite::value_variants().iter().map(|suite| (*suite, suite.name().replace('-', "_")))
}

fn items(suite: Suite, rows: &[Value]) -> Vec<Item> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.json");
    std::fs::write(&path, json!(rows).to_string()).unwrap();
    suite.read(&[path], 1 << 20).unwrap()
}

fn figures(suite: Suite, items: &[Item], scores: &[Vec<f64>]) -> BTreeMap<String, f64> {
    suite.figures(items, scores).into_iter().map(|figure| (figure.name, figure.score)).collect()
}

#[test]
fn figures_are_the_authors_own() {
    for (suite, file) in suites() {
        for Fixture { name, rows, scores, expected } in fixtures(&file) {
            let scores: Vec<Vec<f64>> =
                scores.iter().map(|row| row.iter().map(|score| score.unwrap_or(f64::NAN)).collect()).collect();
            let items = items(suite, &rows);
            let found = figures(suite, &items, &scores);
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{file}, {name}");
            for (figure, expected) in &expected {
                let (found, expected) = (found[figure], expected.unwrap_or(f64::NAN));
                let equal = (found - expected).abs() < 1e-9 || (found.is_nan() && expected.is_nan());
                assert!(equal, "{file}, {name}, {figure}: {found} is not {expected}");
            }
            // The control: the other way round it is another number, but where all is tied.
            let turned: Vec<Vec<f64>> = scores.iter().map(|row| row.iter().map(|score| -score).collect()).collect();
            let flat = ["no spread", "nothing to tie", "ties with NaN", "ties only: a decision for B"];
            assert!(flat.contains(&&name[..]) || figures(suite, &items, &turned) != found, "{file}, {name}");
        }
    }
}

#[test]
fn intervals_hold_the_figure_and_baselines_are_the_figures_of_lengths() {
    for (suite, file) in suites() {
        let Fixture { rows, scores, .. } = fixtures(&file).swap_remove(0);
        let scores: Vec<Vec<f64>> =
            scores.iter().map(|row| row.iter().map(|score| score.unwrap_or(f64::NAN)).collect()).collect();
        let items = items(suite, &rows);
        let lengths = |sign: f64| {
            let of = |item: &Item| item.answers.iter().map(|answer| sign * answer.len() as f64).collect();
            figures(suite, &items, &items.iter().map(of).collect::<Vec<_>>())
        };
        let (longest, shortest) = (lengths(1.0), lengths(-1.0));
        let lines = lines(suite, "reward", &items, &scores, None, NOTHING_CUT);
        assert_eq!(lines.last().unwrap().subset, "all");
        for line in &lines {
            let (low, high) = (line.low.unwrap(), line.high.unwrap());
            // Wilson's lower end of nothing is 0 but for rounding.
            assert!(low <= line.score + 1e-12 && line.score <= high + 1e-12 && low < high, "{line:?}");
            assert_eq!((line.longest, line.shortest), (longest[&line.subset], shortest[&line.subset]), "{line:?}");
            assert!(line.chance > 0.0 && line.chance <= 0.5, "{line:?}");
        }
    }
    // Best of four at random is one in four.
    let Fixture { rows, scores, .. } = fixtures("rewardbench2").swap_remove(0);
    let scores: Vec<Vec<f64>> = scores.iter().map(|row| row.iter().flatten().copied().collect()).collect();
    let lines = lines(Suite::Rewardbench2, "reward", &items(Suite::Rewardbench2, &rows), &scores, None, NOTHING_CUT);
    assert!(lines.iter().filter(|line| !["Ties", "all"].contains(&&line.subset[..])).all(|line| line.chance == 0.25));
}

/// Promise: prompts that all came out alike do not claim certainty, though the smooth term of Ties takes the score above 1.
#[test]
fn ties_that_all_came_out_alike_have_wilsons_interval() {
    let line = |scores: &[[f64; 4]]| {
        let row = |(number, _): (usize, &[f64; 4])| {
            let row = |role: &str, chosen: &[&str]| {
                json!({"id": format!("{role}:{number}"), "prompt": format!("{role} {number}"), "chosen": chosen,
                       "rejected": ["wrong"], "subset": "Ties"})
            };
            [row("ref", &["right"]), row("tied", &["right", "right too"])]
        };
        let rows: Vec<Value> = scores.iter().enumerate().flat_map(row).collect();
        // A row's right answers, then the wrong one at 0. The last number is the reference's.
        let of_row = |[one, two, wrong, reference]: &[f64; 4]| [vec![*reference, *wrong], vec![*one, *two, *wrong]];
        let scores: Vec<Vec<f64>> = scores.iter().flat_map(of_row).collect();
        let items = items(Suite::Rewardbench2, &rows);
        lines(Suite::Rewardbench2, "reward", &items, &scores, None, NOTHING_CUT).swap_remove(0)
    };
    let wilson = |n: f64| n / (n + 3.8415);
    // All parts are right, and the smooth term is its most, or two prompts' is another.
    for scores in [&[[9.0, 9.1, 0.0, 9.0]][..], &[[9.0, 9.1, 0.0, 9.0], [9.0, 10.0, 0.0, 9.0], [9.0, 13.0, 0.0, 9.0]]] {
        let found = line(scores);
        let (low, high) = (found.low.unwrap(), found.high.unwrap());
        assert!(found.score > 1.0 && high >= found.score && high <= 1.01 + 1e-12, "{found:?}");
        assert!((low - wilson(scores.len() as f64)).abs() < 1e-4, "{found:?}");
    }
    // The control: where outcomes differ the bootstrap knows of it.
    let found = line(&[[9.0, 9.1, 0.0, 9.0], [-9.0, 9.1, 0.0, 9.0], [9.0, 9.1, 0.0, -9.0]]);
    assert!((found.low.unwrap() - 0.29095).abs() < 1e-4 && (found.high.unwrap() - 1.01).abs() < 1e-4, "{found:?}");
}

/// Twelve RewardBench rows in each of five subsets of four sections: of the same twelve prompts, or each of its own.
fn in_two_sections(shared: bool) -> Vec<Value> {
    let subsets = ["alpacaeval-easy", "mt-bench-easy", "llmbar-natural", "hep-cpp", "donotanswer"];
    let row = |(subset, number): (&str, usize)| {
        let prompt = if shared { format!("prompt {number}") } else { format!("prompt {number} of {subset}") };
        json!({"prompt": prompt, "chosen": "good", "rejected": "bad one", "subset": subset})
    };
    subsets.iter().flat_map(|subset| (0..12).map(move |number| (*subset, number))).map(row).collect()
}

#[test]
fn a_prompt_in_two_subsets_is_drawn_with_both_and_is_one_piece_of_evidence() {
    // Every prompt comes out alike in all its subsets: half of the prompts are right.
    let interval = |shared: bool, subset: &str, right: fn(usize) -> bool| {
        let items = items(Suite::Rewardbench, &in_two_sections(shared));
        let scores: Vec<Vec<f64>> =
            (0..items.len()).map(|item| vec![f64::from(u8::from(right(item % 12))), 0.5]).collect();
        let lines = lines(Suite::Rewardbench, "reward", &items, &scores, None, NOTHING_CUT);
        let line = lines.iter().find(|line| line.subset == subset).unwrap();
        (line.score, line.high.unwrap() - line.low.unwrap())
    };
    for subset in ["Chat", "all"] {
        let [(score, together), (same, apart)] = [true, false].map(|shared| interval(shared, subset, |n| n % 2 == 0));
        assert_eq!((score, same), (0.5, 0.5));
        // Chat has two subsets, the whole four sections: as if of 12 prompts, and not of 24 or more.
        let (_, single) = interval(true, "Chat Hard", |n| n % 2 == 0);
        assert!((together - single).abs() < 0.1, "{subset}: {together} {single}");
        assert!(apart < 0.92 * together, "the control, other prompts: {subset}: {apart} {together}");
    }
    // Where all are right there is no width, and Wilson's n is 12 prompts, not 24.
    let [(_, together), (_, apart)] = [true, false].map(|shared| interval(shared, "Chat", |_| true));
    let wilson = |n: f64| 3.8415 / (n + 3.8415);
    assert!((together - wilson(12.0)).abs() < 1e-4 && (apart - wilson(24.0)).abs() < 1e-4, "{together} {apart}");
}

#[test]
fn eval_computes_a_suite_from_its_answers_rewards_on_any_number_of_ranks() {
    let workspace = Workspace::trained(1);
    let files =
        [(Suite::Rewardbench2, "rewardbench2"), (Suite::Judgebench, "judgebench"), (Suite::RmBench, "rm_bench")];
    let mut expected = BTreeMap::new();
    for (suite, file) in files {
        let rows = fixtures(file).swap_remove(0).rows;
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        workspace.write(&format!("{file}.jsonl"), &text);
        let items = items(suite, &rows);
        let singles = items.iter().flat_map(|item| item.answers.iter().map(|answer| (&item.prompt, answer)));
        let text: String =
            singles.map(|(prompt, answer)| json!({"prompt": prompt, "answer": answer}).to_string() + "\n").collect();
        workspace.write("singles.jsonl", &text);
        let score = ["score", "--checkpoint", "run/step-6", "--data", "singles.jsonl", "--combined"];
        let mut scored = parse_lines(&workspace.run(1, &score).succeeded().stdout).into_iter();
        let mut of_head = |key: &str, lines: &[Value]| {
            let mut lines = lines.iter();
            let next = |_: &String| lines.next().unwrap()[key].as_f64().unwrap();
            let mut next = next;
            let scores: Vec<Vec<f64>> = items.iter().map(|item| item.answers.iter().map(&mut next).collect()).collect();
            for (subset, figure) in figures(suite, &items, &scores) {
                expected.insert((suite.name().to_owned(), key.to_owned(), subset), figure);
            }
        };
        let all: Vec<Value> = scored.by_ref().collect();
        of_head("reward", &all);
        of_head("implicit", &all);
        of_head("combined", &all);
    }
    let eval = |ranks: usize, more: &[&str]| {
        let suites = [
            &["--suite", "rewardbench2", "rewardbench2.jsonl"][..],
            &["--suite", "judgebench", "judgebench.jsonl", "--suite", "rm-bench", "rm_bench.jsonl"],
        ];
        let arguments = [&["eval", "--checkpoint", "run/step-6"], &suites.concat()[..], more].concat();
        workspace.run(ranks, &arguments).succeeded()
    };
    let read = |ranks: usize, more: &[&str], figure: &str| -> BTreeMap<_, f64> {
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let named = |line: &Value| (text(line, "suite"), text(line, "scored_by"), text(line, "subset"));
        let lines = parse_lines(&eval(ranks, &[more, &["--json"]].concat()).stdout);
        // Not those of contamination.
        let lines = lines.iter().filter(|line| line.get("suite").is_some());
        lines.map(|line| (named(line), line[figure].as_f64().unwrap_or(f64::NAN))).collect()
    };
    let near = |one: &BTreeMap<_, f64>, other: &BTreeMap<_, f64>| {
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        // The formula of Ties is smooth; the rest counts comparisons.
        one.iter().all(|(key, score)| (score - other[key]).abs() < 1e-5)
    };
    let whole = read(1, &[], "score");
    assert!(near(&whole, &expected), "{whole:?} {expected:?}");
    assert!(near(&read(2, &[], "score"), &expected));
    // Cut, the number without cutting stands beside.
    let cut = ["--max-length", "30", "--max-prompt-length", "20"];
    let (judgebench, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        read(2, &cut, "uncut").into_iter().partition(|((suite, _, _), _)| suite == "judgebench");
    assert!(others.iter().all(|(key, uncut)| (uncut - expected[key]).abs() < 1e-5), "{others:?}");
    assert!(judgebench.values().all(|uncut| uncut.is_nan()), "nothing of it is cut: {judgebench:?}");
    assert!(!near(&read(1, &cut, "score"), &expected), "the control: what is cut has another number");
    let table = eval(1, &cut).stdout;
    assert!(table.contains("answers truncated to 30 tokens") && table.contains("without truncation"), "{table}");
    // RM-Bench's longest answers are beyond the model's own 64 tokens, whatever the suite's length.
    let table = eval(1, &[]).stdout;
    assert!(table.contains("judgebench, by implicit: nothing truncated\n"), "{table}");
    assert!(
        table.contains("rm-bench, by reward: ") && table.contains(" of 258 truncated to the model's own 64 tokens\n"),
        "{table}"
    );
    let lines = parse_lines(&eval(1, &[&cut[..], &["--json"]].concat()).stdout);
    for line in lines.iter().filter(|line| line.get("suite").is_some()) {
        let cut = line["cut"].as_u64().unwrap();
        assert_eq!((line["limit"].as_u64(), cut > 0), (Some(30), line["suite"] != "judgebench"), "{line}");
        assert_eq!(line["beyond"].as_u64().unwrap() > 0, line["suite"] == "rm-bench", "{line}");
        let file = format!("{}.jsonl", line["suite"].as_str().unwrap().replace('-', "_"));
        assert_eq!((&line["files"], &line["checkpoint"]), (&json!([file]), &json!("run/step-6")), "{line}");
        assert_eq!(line["second_bos"], false, "this tokenizer has no BOS: {line}");
    }
    // A run that drops what is too long cuts it here: the suite's number is over all items.
    let dropping = with_config(&[], &["data.truncation='drop'", "output.dir='dropping'"]);
    workspace.run(1, &dropping).succeeded();
    let newest = format!("dropping/step-{}", workspace.steps("dropping").len());
    let dropped = ["eval", "--checkpoint", &newest, "--suite", "rewardbench2", "rewardbench2.jsonl"];
    assert!(
        workspace.run(1, &[&dropped[..], &cut].concat()).succeeded().stdout.contains("answers truncated to 30 tokens")
    );
}

#[test]
fn files_that_are_no_suite_are_refused_with_what_was_expected() {
    let workspace = Workspace::trained(1);
    workspace.write("odd.jsonl", &json!({"prompt": "a", "chosen": "b", "rejected": "c"}).to_string());
    workspace.write("rm.jsonl", &fixtures("rm_bench").swap_remove(1).rows[0].to_string());
    let eval = ["eval", "--checkpoint", "run/step-6", "--suite"];
    for (suite, says) in [
        (&["rewardbnch", "odd.jsonl"][..], &["--suite rewardbnch: no suite of that name", "rm-bench"][..]),
        (&["rewardbench", "odd.jsonl", "judgebench"], &["--suite judgebench: no files are named"]),
        (&["rewardbench", "a", "rewardbench", "b"], &["--suite rewardbench is given twice"]),
        (&["rewardbench", "odd.jsonl"], &["odd.jsonl:1", "`subset` is missing, expected a text"]),
        (&["rm-bench", "rm.jsonl", "./rm.jsonl"], &["rm-bench: ./rm.jsonl is named twice"]),
    ] {
        for ranks in [1, 2] {
            let outcome = workspace.run(ranks, &[&eval[..], suite].concat());
            assert_eq!((outcome.code, &outcome.stdout[..]), (2, ""), "{suite:?}: {}", outcome.stderr);
            assert!(says.iter().all(|text| outcome.stderr.contains(text)), "{suite:?}: {}", outcome.stderr);
        }
    }
}

/// Promise: a score that is no number is an error that names the suite and the prompt.
#[test]
fn a_score_that_is_not_finite_is_reported_with_its_suite_and_prompt() {
    let workspace = Workspace::trained(1);
    let path = workspace.path("run/step-6/model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    for (name, tensor) in &mut tensors {
        if name == "score.weight" {
            let _ = tensor.fill_(f64::NAN);
        }
    }
    Tensor::write_safetensors(&tensors, &path).unwrap();
    workspace.write("rm.jsonl", &fixtures("rm_bench").swap_remove(1).rows[0].to_string());
    for ranks in [1, 2] {
        let eval = ["eval", "--checkpoint", "run/step-6", "--allow-changed", "--suite", "rm-bench", "rm.jsonl"];
        let outcome = workspace.run(ranks, &eval);
        let says = "rm-bench: an answer to the prompt \"Question 0?\" has a score that is not a finite number";
        assert!(outcome.code == 1 && outcome.stderr.contains(says), "{}", outcome.stderr);
    }
}

/// Promise: where the authors' code sees a second BOS, that is said beside the number, and nowhere else.
#[test]
fn a_second_bos_is_reported_if_the_authors_code_keeps_it() {
    let workspace = Workspace::new();
    let mut tokenizer = tokenizer();
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    workspace.write("model/tokenizer.json", &tokenizer.to_string());
    let mut config: Value = serde_json::from_slice(&workspace.read("model/tokenizer_config.json")).unwrap();
    config["chat_template"] = json!(format!("{{{{ bos_token }}}}{}", config["chat_template"].as_str().unwrap()));
    workspace.write("model/tokenizer_config.json", &config.to_string());
    workspace.train(1, &["loss.objective=reward"]).succeeded();
    for (suite, file, keeps) in [("judgebench", "judgebench", true), ("rewardbench2", "rewardbench2", false)] {
        workspace.write("rows.json", &json!(fixtures(file).swap_remove(0).rows).to_string());
        let eval = ["eval", "--checkpoint", "run/step-6", "--suite", suite, "rows.json"];
        let table = workspace.run(1, &eval).succeeded().stdout;
        assert_eq!(table.contains("one BOS, while the authors' code"), keeps, "{table}");
        let lines = parse_lines(&workspace.run(1, &[&eval[..], &["--json"]].concat()).succeeded().stdout);
        assert!(lines.iter().all(|line| line["second_bos"] == keeps), "{lines:?}");
    }
}
