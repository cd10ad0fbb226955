//! Promise: `haf-dist models FOLDER` reports what loading the folder would, with every reason at once; a vocabulary with more
//! rows than the tokenizer has tokens loads.

use crate::tiny::{Outcome, Workspace, parse_lines};
use haf_dist::model::architecture::FAMILIES;
use haf_dist::model::layout::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::{Mapped, write_model};
use serde_json::{Value, json};
use std::fs;
use tch::{Device, Kind, Tensor};

fn models(workspace: &Workspace) -> Outcome {
    workspace.run(1, &["models", "model"])
}

/// With other values under keys of config.json.
fn change(workspace: &Workspace, changes: &[(&str, Value)]) {
    let mut config: Value = serde_json::from_slice(&workspace.read("model/config.json")).unwrap();
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    workspace.write("model/config.json", &config.to_string());
}

#[test]
fn every_family_is_listed() {
    let outcome = Workspace::new().run(1, &["models"]).succeeded();
    for family in FAMILIES {
        let line = outcome.stdout.lines().find(|line| line.split(' ').next() == Some(family.model_type));
        assert!(line.is_some_and(|line| line.ends_with(family.covers)), "{}", outcome.stdout);
    }
}

#[test]
fn a_folder_that_loads_is_described_and_one_that_does_not_is_refused_with_every_reason() {
    let workspace = Workspace::new();
    let outcome = models(&workspace).succeeded();
    let model = load(&workspace);
    let says = [
        "LlamaForSequenceClassification".to_string(),
        format!("{}, including a reward head of 32", model.parameter_count()),
        "blocks               3\n".into(),
        "97 rows".into(),
        "none: it starts at zero".into(),
    ];
    for said in says {
        assert!(outcome.stdout.contains(&said), "{said}\n{}", outcome.stdout);
    }

    // What is wrong with keys, and what the folder lacks.
    let rope = json!({"rope_type": "spiral", "rope_theta": -1.0});
    change(&workspace, &[("rope_parameters", rope), ("hidden_act", json!("sine")), ("vocab_size", json!("many"))]);
    fs::remove_file(workspace.path("model/model.safetensors")).unwrap();
    fs::remove_file(workspace.path("model/tokenizer.json")).unwrap();
    let outcome = models(&workspace);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{}", outcome.stderr);
    let of_config = ["vocab_size = \"many\"", "rope_theta = -1.0", "\"spiral\"", "hidden_act = \"sine\""];
    let of_folder = ["holds no weights", "tokenizer.json"];
    for said in ["6 reasons"].into_iter().chain(of_config).chain(of_folder) {
        assert!(outcome.stderr.contains(said), "{said}\n{}", outcome.stderr);
    }
    // Training says all that is wrong with config.json.
    let stderr = workspace.train(1, &[]).stderr;
    for said in ["4 reasons"].into_iter().chain(of_config) {
        assert!(stderr.contains(said), "{said}\n{stderr}");
    }
}

#[test]
fn readable_parts_of_a_folder_are_reported_even_if_it_would_not_load() {
    let workspace = Workspace::new();
    let said = |workspace: &Workspace| -> Value {
        let outcome = workspace.run(1, &["models", "model", "--json"]);
        let said: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(outcome.code == 0, said["would_load"] == true, "{}", outcome.stderr);
        assert_eq!(said["would_load"] == true, said["reasons"].as_array().unwrap().is_empty());
        said
    };
    let whole = said(&workspace);
    let parameters = load(&workspace).parameter_count();
    assert_eq!((&whole["parameters"], &whole["vocabulary"]), (&json!(parameters), &json!(97)));
    // All but the reward head are in the file.
    assert_eq!(whole["numbers_held"], json!(parameters - 32));
    fs::remove_file(workspace.path("model/tokenizer.json")).unwrap();
    let without = said(&workspace);
    assert_eq!((&without["parameters"], &without["last_token_id"]), (&whole["parameters"], &Value::Null));
    assert_eq!(without["reasons"].as_array().unwrap().len(), 1);
    // A family that is not read leaves what the headers say.
    change(&workspace, &[("model_type", json!("qwen3_5"))]);
    let other = said(&workspace);
    assert_eq!((&other["parameters"], &other["numbers_held"]), (&Value::Null, &whole["numbers_held"]));
    let reason = &other["reasons"][0];
    assert!(reason["message"].as_str().unwrap().contains("linear attention"), "{reason}");
    assert!(reason["hint"].as_str().unwrap().contains("haf-dist models"), "{reason}");
}

#[test]
fn weights_of_another_model_are_noticed_without_being_read() {
    let workspace = Workspace::new();
    change(&workspace, &[("intermediate_size", json!(13)), ("num_hidden_layers", json!(4))]);
    let outcome = models(&workspace);
    assert_eq!(outcome.code, 2);
    for said in ["2 reasons", "9 of 38 tensors are missing", "by config.json it must be [13, 32]; 8 more do not fit"] {
        assert!(outcome.stderr.contains(said), "{said}\n{}", outcome.stderr);
    }
}

fn load(workspace: &Workspace) -> Model {
    let (kind, purpose) = (Kind::Float, Use::Evaluate);
    let options = LoadOptions { kind, device: Device::Cpu, purpose, log_probs: true };
    Model::load(&workspace.path("model"), options).unwrap()
}

/// As trainers do for speed: rows for tokens that do not exist, and vocab_size with them.
#[test]
fn a_padded_vocabulary_loads_and_gives_the_same_rewards() {
    // Log-probs have the further rows in their denominators, as in any program.
    let rewards = |workspace: &Workspace| -> Vec<Value> {
        let command = ["score", "--checkpoint", "model", "--data", "test.jsonl", "--dtype", "f32", "--threads", "1"];
        let lines = parse_lines(&workspace.run(1, &command).succeeded().stdout);
        lines.into_iter().flat_map(|line| [line["reward_chosen"].clone(), line["reward_rejected"].clone()]).collect()
    };
    let workspace = Workspace::new();
    let path = workspace.path("model/model.safetensors");
    let head = Tensor::arange(32, (Kind::Float, Device::Cpu)).view([1, 32]);
    let tensors = |rows: i64, scale: f64| -> Vec<(String, Tensor)> {
        let file = Mapped::open(&path).unwrap();
        let widen = |name: String| {
            let value = file.read(&name).unwrap();
            let value = match name == "model.embed_tokens.weight" {
                true => Tensor::cat(&[&value * scale, value.narrow(0, 0, rows)], 0),
                false => value,
            };
            (name, value)
        };
        let held = file.names().into_iter().filter(|name| name != "score.weight").map(widen);
        held.chain([("score.weight".to_string(), head.copy())]).collect()
    };
    let replace = |tensors: &[(String, Tensor)]| {
        fs::remove_file(&path).unwrap();
        write_model(&path, tensors).unwrap();
    };
    replace(&tensors(0, 1.0));
    let before = rewards(&workspace);
    let padded = tensors(31, 1.0);
    replace(&padded);
    change(&workspace, &[("vocab_size", json!(128))]);
    assert_eq!(load(&workspace).segment(Part::Embedding).unwrap().1.parameters()[0].shape, [128, 32]);
    assert_eq!(rewards(&workspace), before);
    let said = models(&workspace).succeeded().stdout;
    assert!(said.contains("128 rows") && said.contains("last token id        74"), "{said}");
    // The same with a head of its own, which has as many rows.
    let embedding = &padded.iter().find(|(name, _)| name == "model.embed_tokens.weight").unwrap().1;
    let untied = |head: Tensor| -> Vec<(String, Tensor)> {
        let held = padded.iter().map(|(name, value)| (name.clone(), value.shallow_clone()));
        held.chain([("lm_head.weight".to_string(), head)]).collect()
    };
    replace(&untied(embedding * 0.5));
    change(&workspace, &[("tie_word_embeddings", json!(false))]);
    assert_eq!(load(&workspace).segment(Part::LanguageModelHead).unwrap().1.parameters()[0].shape, [128, 32]);
    assert_eq!(rewards(&workspace), before);
    assert!(models(&workspace).succeeded().stdout.contains("its own"));
    // One with the tokenizer's rows alone does not fit.
    replace(&untied(embedding.narrow(0, 0, 97) * 0.5));
    let outcome = models(&workspace);
    assert!(outcome.code == 2 && outcome.stderr.contains("lm_head.weight has shape [97, 32]"), "{}", outcome.stderr);
    replace(&padded);
    change(&workspace, &[("tie_word_embeddings", json!(true))]);
    // Control: other rows would be seen.
    replace(&tensors(0, 2.0));
    assert_ne!(rewards(&workspace), before);
}
