//! Models and data that cannot be used, each refused as `refused.rs` requires.

use crate::runs::refused::{Case, check};
use crate::tiny::{VOCABULARY, Workspace, rows, tokenizer, with_config};
use serde_json::{Value, json};

/// Trains with these overrides on one rank and on two, and is refused.
#[track_caller]
fn refuse(workspace: &Workspace, name: &str, set: &[&str], says: &[&str]) {
    check(workspace, &[1, 2], &Case { name, arguments: with_config(&[], set), says });
}

/// Changes the model's config.json.
fn edit_config(workspace: &Workspace, key: &str, value: Value) {
    let mut config: Value = serde_json::from_slice(&workspace.read("model/config.json")).unwrap();
    config[key] = value;
    workspace.write("model/config.json", &config.to_string());
}

#[test]
fn paths_that_lead_nowhere_are_named() {
    let workspace = Workspace::new();
    refuse(
        &workspace,
        "missing model",
        &["model.path=nowhere"],
        &["model.path: there is no folder nowhere", "looked for /"],
    );
    refuse(&workspace, "missing data", &["data.train.1.path=nowhere.jsonl"], &["nowhere.jsonl"]);
    refuse(&workspace, "a folder as data", &["data.dev.0.path=model"], &["cannot read model"]);
    refuse(&workspace, "missing test data", &["data.test.0.path=nowhere.jsonl"], &["nowhere.jsonl"]);
}

#[test]
fn broken_rows_are_named_with_file_and_line() {
    let workspace = Workspace::new();
    let good = rows(0, 2);
    workspace.write("plain.jsonl", &format!("{good}{{\"prompt\": \"What?\", \"chosen\n{good}"));
    refuse(&workspace, "broken JSON", &[], &["plain.jsonl:3", "broken JSON"]);
    let half = json!({"prompt": "What?", "chosen": "yes"});
    workspace.write("plain.jsonl", &format!("{}{half}\n{good}", rows(0, 1)));
    refuse(&workspace, "no answer", &["data.strict=true"], &["plain.jsonl:2", "`rejected` is missing"]);
}

#[test]
fn data_that_leaves_no_pair_is_refused() {
    let workspace = Workspace::new();
    workspace.write("plain.jsonl", "\n");
    refuse(&workspace, "empty file", &[], &["plain.jsonl holds no rows"]);
    let same = json!({"prompt": "What?", "chosen": "yes", "rejected": "yes"});
    workspace.write("plain.jsonl", &format!("{same}\n{same}\n"));
    refuse(&workspace, "identical pairs", &[], &["of 2 pairs", "none is left", "identical answers: 2"]);
    refuse(
        &workspace,
        "too long",
        &["data.train.0.path=dev.jsonl", "data.truncation=drop", "data.max_length=8", "data.max_prompt_length=4"],
        &["dev.jsonl", "none is left", "too long: 5"],
    );
}

#[test]
fn a_text_with_a_token_beyond_the_embedding_is_refused() {
    let workspace = Workspace::new();
    let mut wide = tokenizer();
    wide["model"]["vocab"]["é"] = json!(VOCABULARY);
    workspace.write("model/tokenizer.json", &wide.to_string());
    let row = json!({"prompt": "What?", "chosen": "oui, très bien: é", "rejected": "no"});
    workspace.write("plain.jsonl", &format!("{}{row}\n", rows(0, 2)));
    refuse(&workspace, "é beyond", &[], &["plain.jsonl", "line 3", "\"é\" is token 97", "97 rows"]);
    // The controls: no text uses it, and the last id that fits.
    workspace.write("plain.jsonl", &rows(0, 3));
    workspace.train(1, &["train.steps=1"]).succeeded();
    wide["model"]["vocab"]["é"] = json!(VOCABULARY - 1);
    workspace.write("model/tokenizer.json", &wide.to_string());
    workspace.write("plain.jsonl", &format!("{}{row}\n", rows(0, 2)));
    workspace.train(1, &["train.steps=1", "output.dir=other"]).succeeded();
}

#[test]
fn an_expression_that_backtracks_without_end_is_an_error_with_the_row() {
    let workspace = Workspace::new();
    let mut hostile = tokenizer();
    hostile["pre_tokenizer"]["pattern"] = json!({"Regex": "(?:x+x+)+y|."});
    workspace.write("model/tokenizer.json", &hostile.to_string());
    let row = json!({"prompt": "x".repeat(60), "chosen": "yes", "rejected": "no"});
    workspace.write("plain.jsonl", &format!("{}{row}\n", rows(0, 2)));
    refuse(&workspace, "backtracking", &[], &["plain.jsonl", "line 3", "gives up", "retry-limit"]);
}

#[test]
fn damaged_weights_are_refused() {
    let workspace = Workspace::new();
    let whole = workspace.read("model/model.safetensors");
    for length in [0, 5, 700, whole.len() - 1] {
        std::fs::write(workspace.path("model/model.safetensors"), &whole[..length]).unwrap();
        refuse(&workspace, &format!("cut to {length} bytes"), &[], &["model/model.safetensors"]);
    }
    std::fs::remove_file(workspace.path("model/model.safetensors")).unwrap();
    refuse(&workspace, "no weights", &[], &["model holds no weights"]);
}

#[test]
fn weights_that_disagree_with_the_models_config_are_refused() {
    let shape = Workspace::new();
    edit_config(&shape, "intermediate_size", json!(13));
    let says = ["model/model.safetensors", "model.layers.0.mlp.", "[12, 32]", "[13, 32]"];
    check(&shape, &[1, 2], &Case { name: "wrong shape", arguments: with_config(&[], &[]), says: &says });
    let missing = Workspace::new();
    edit_config(&missing, "num_hidden_layers", json!(4));
    refuse(&missing, "missing tensors", &[], &["9 of ", "are missing", "model.layers.3."]);
    let family = Workspace::new();
    edit_config(&family, "model_type", json!("gpt2"));
    refuse(&family, "another family", &[], &["model/config.json", "\"gpt2\""]);
}

#[test]
fn a_folder_that_is_no_reward_model_is_neither_evaluated_nor_scored() {
    let workspace = Workspace::new();
    let arguments = |command, checkpoint| {
        let common = ["--checkpoint", checkpoint, "--data", "test.jsonl", "--dtype", "f32", "--threads", "1"];
        [&[command][..], &common].concat()
    };
    for command in ["eval", "score"] {
        let mut headless = arguments(command, "model");
        let mut missing = arguments(command, "nowhere");
        if command == "score" {
            // The file is not left behind, empty.
            headless.extend(["--output", "new.jsonl"]);
            missing.extend(["--output", "new.jsonl"]);
        }
        check(&workspace, &[1, 2], &Case { name: "no head", arguments: headless, says: &["no reward head"] });
        let says = ["--checkpoint: there is no folder nowhere", "looked for /"];
        check(&workspace, &[1, 2], &Case { name: "no checkpoint", arguments: missing, says: &says });
    }
    let mut existing = arguments("score", "model");
    existing.extend(["--output", "dev.jsonl"]);
    let says = ["dev.jsonl exists already"];
    check(&workspace, &[1, 2], &Case { name: "existing output", arguments: existing, says: &says });
    let mut below = arguments("score", "model");
    below.extend(["--output", "nowhere/new.jsonl"]);
    let says = ["nowhere does not exist"];
    check(&workspace, &[1], &Case { name: "output nowhere", arguments: below, says: &says });
}

/// Promise: a folder that is missing is named as such, with the path that was tried, and not by what it would have to hold.
#[test]
fn a_missing_folder_is_named_before_anything_in_it() {
    let workspace = Workspace::new();
    let missing = "there is no folder runs/nope\n  hint: looked for /";
    for (arguments, says, on_hub) in [
        (&["verify", "runs/nope"][..], missing, true),
        (&["export", "runs/nope", "out"], missing, true),
        (&["models", "runs/nope"], missing, true),
        (&["init", "--model", "runs/nope", "--train", "plain.jsonl", "--out", "new.toml"], missing, true),
        (&["bench", "--model", "runs/nope", "--pairs", "plain.jsonl"], missing, false),
        (&["compare", "run.toml", "runs/nope"], "run.toml is a file; expected a folder", false),
    ] {
        let outcome = workspace.run(1, arguments);
        assert!(outcome.code == 2 && outcome.stderr.contains(says), "{arguments:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.contains("write hf://runs/nope"), on_hub, "{arguments:?}: {}", outcome.stderr);
    }
    let init = ["init", "--model", "model", "--train", "plain.jsonl", "--out", "sub/new.toml"];
    let outcome = workspace.run(1, &init);
    assert!(outcome.code == 2 && outcome.stderr.contains("the folder sub does not exist"), "{}", outcome.stderr);
}
