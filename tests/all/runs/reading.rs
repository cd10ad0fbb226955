//! Messages about rows: odd ones, keys that nothing reads, columns of other names, and the list of layouts.

use crate::runs::refused::{Case, check};
use crate::tiny::{Workspace, parse_lines, rows, with_config};
use serde_json::json;

#[test]
fn odd_rows_are_counted_and_named_and_strict_stops_at_the_first_from_the_cache_too() {
    let workspace = Workspace::new();
    let odd = json!({"prompt": "What?", "chosen": 7, "rejected": "no", "note": "n"});
    let noted = json!({"prompt": "What?", "chosen": "yes", "rejected": "no", "note": "n"});
    workspace.write("plain.jsonl", &format!("{}{odd}\n{noted}\n", rows(0, 3)));
    let outcome = workspace.train(1, &["train.steps=1", "output.dir=counted"]).succeeded();
    for text in [
        "| - odd row: `chosen` is a number, expected a string, a message list or a message |",
        "train: one odd row is left out: plain.jsonl:4: `chosen` is a number",
        "train: plain.jsonl: keys not used: note (1 of 4 rows)",
    ] {
        assert!(outcome.stderr.contains(text), "no {text:?} in {}", outcome.stderr);
    }
    let arguments = with_config(&[], &["data.strict=true"]);
    check(&workspace, &[1, 2], &Case { name: "strict", arguments, says: &["plain.jsonl:4: `chosen` is a number"] });
}

#[test]
fn score_reads_other_columns_and_names_what_it_does_not_use() {
    let workspace = Workspace::trained(1);
    let score = |file: &str, more: &[&str]| {
        let arguments = [&["score", "--checkpoint", "run/step-6", "--dtype", "f32", "--data", file], more].concat();
        workspace.run(1, &arguments)
    };
    workspace.write("plain.jsonl", &format!("{}\n", json!({"prompt": "What?", "chosen": "yes", "rejected": "no"})));
    let other = json!({"q": {"text": "What?"}, "best": "yes", "worst": "no", "note": "n"});
    workspace.write("other.jsonl", &format!("{other}\n"));
    let plain = score("plain.jsonl", &[]).succeeded();
    let columns = ["--column", "prompt=q.text", "--column", "chosen=best", "--column", "rejected=worst"];
    let mapped = score("other.jsonl", &columns).succeeded();
    assert_eq!(parse_lines(&mapped.stdout), parse_lines(&plain.stdout));
    assert!(mapped.stderr.contains("other.jsonl: keys not used: note (all rows)"), "{}", mapped.stderr);
    let refused = score("other.jsonl", &[]);
    assert!(refused.code == 2 && refused.stderr.contains("columns = { "), "{}", refused.stderr);

    // The tiny model's template knows no reasoning.
    let turn = json!([{"role": "assistant", "content": "yes", "reasoning_content": "hm"}]);
    workspace.write("reasons.jsonl", &format!("{}\n", json!({"prompt": "What?", "chosen": turn, "rejected": "no"})));
    let reasons = score("reasons.jsonl", &[]).succeeded();
    let told = "keys not used: reasoning_content (not in the chat template) (all rows)";
    assert!(reasons.stderr.contains(told), "{}", reasons.stderr);
}

#[test]
fn formats_lists_every_layout_and_shows_one() {
    let workspace = Workspace::new();
    let all = workspace.run(1, &["formats"]).succeeded().stdout;
    let one = workspace.run(1, &["formats", "helpsteer2-attributes"]).succeeded().stdout;
    for text in ["\npairs: a prompt and two answers", "\nscored: ", "(must be named)", "Beside any of them: system, "] {
        assert!(all.contains(text), "no {text:?} in {all}");
    }
    assert!(one.contains("decided by  helpfulness") && one.lines().count() == 6, "{one}");
    check(
        &workspace,
        &[1],
        &Case { name: "auto", arguments: vec!["formats", "auto"], says: &["auto is not a layout"] },
    );
}
