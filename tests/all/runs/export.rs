//! An exported checkpoint as Transformers would read it: its config, and where the reward is read.

use crate::tiny::{VOCABULARY, Workspace};
use haf_dist::config::{Config, Source};
use haf_dist::data::batch::{PackedBatch, Packing, PairToPack};
use haf_dist::data::formats;
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoded, Encoder, Rules};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Device, Tensor};

const EOS: u32 = 2;

/// All pairs of the run, tokenized by the exported tokenizer.
fn pairs(workspace: &Workspace, checkpoint: &str) -> Vec<OwnedPair> {
    let config = Config::load(&workspace.path(checkpoint).join("trainer/config.toml"), &[]).unwrap();
    let data = &config.data;
    let (folder, lengths) = (workspace.path(checkpoint), (data.max_length, data.max_prompt_length));
    let encoder =
        Encoder::open(&folder, Rules::new(data.template, lengths.0, lengths.1, data.truncation), VOCABULARY).unwrap();
    let read = |source: &Source| {
        formats::read(&Source { path: workspace.path(&source.path), ..source.clone() }).unwrap().pairs
    };
    let rows = data.train.iter().chain(&data.dev).chain(&data.test).flat_map(read);
    let encoded = rows.map(|pair| match encoder.encode(&pair).unwrap() {
        Encoded::Kept(pair) => pair,
        Encoded::Dropped(reason) => panic!("dropped: {reason}"),
    });
    encoded.collect()
}

/// Both sequences of a pair, and the row of each in a packed batch of the pair alone at which we read the reward.
fn sequences(owned: &OwnedPair) -> Vec<(Vec<u32>, usize)> {
    let pair = owned.as_token_pair(0.0, 0);
    let item = PairToPack { index: 0, pair, reference: [0.0; 2] };
    let packed = PackedBatch::new([item], Packing::Separate, Device::Cpu);
    let whole = [pair.chosen, pair.rejected].map(|answer| [pair.prefix, answer].concat());
    // Separate packing lays the sequences side by side.
    let starts = [0, whole[0].len()];
    let rows = packed.pairs[0].answers.iter().zip(starts).map(|(answer, start)| answer.reward_row - start);
    whole.into_iter().zip(rows).collect()
}

/// Where Transformers' sequence classifiers pool: the rightmost token that is not padding.
fn pooled(sequence: &[u32], pad: u32) -> Option<usize> {
    sequence.iter().rposition(|&token| token != pad)
}

fn config(workspace: &Workspace, checkpoint: &str) -> Value {
    serde_json::from_slice(&workspace.read(&format!("{checkpoint}/config.json"))).unwrap()
}

#[test]
fn the_exported_config_names_a_reward_model_and_pooling_picks_our_token() {
    let workspace = Workspace::trained(1);
    let config = config(&workspace, "run/step-6");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"].as_object().unwrap().len(), 1);
    let pad = u32::try_from(config["pad_token_id"].as_u64().unwrap()).unwrap();
    assert!(pad != EOS && (pad as usize) < VOCABULARY);
    let tokenizer: Value = serde_json::from_slice(&workspace.read("run/step-6/tokenizer_config.json")).unwrap();
    assert_eq!((&tokenizer["pad_token"], &tokenizer["eos_token"]), (&json!("<|other|>"), &json!("</s>")));
    assert!(tokenizer["chat_template"].is_string(), "the chat template travels along");

    let pairs = pairs(&workspace, "run/step-6");
    assert_eq!(pairs.len(), 5 + 6 + 5 + 7);
    let mut cut = 0;
    for (sequence, row) in pairs.iter().flat_map(sequences) {
        assert!(!sequence.contains(&pad));
        cut += usize::from(sequence.last() != Some(&EOS));
        for batch_width in [sequence.len(), 40] {
            let padding = vec![pad; batch_width - sequence.len()];
            assert_eq!(pooled(&[&sequence[..], &padding].concat(), pad), Some(row), "padded to the right");
            assert_eq!(pooled(&[&padding[..], &sequence].concat(), pad), Some(padding.len() + row), "to the left");
        }
        // The control: padding with EOS reads a token too early.
        if sequence.last() == Some(&EOS) {
            assert_ne!(pooled(&sequence, EOS), Some(row));
        }
    }
    assert!(cut > 0, "no answer was cut: the case without EOS is not seen");
}

#[test]
fn a_family_without_a_class_for_reward_models_goes_out_as_its_causal_model_with_a_card() {
    for (case, class) in [
        ("olmoe", "OlmoeForCausalLM"),
        ("granite", "GraniteForCausalLM"),
        ("cohere2", "Cohere2ForCausalLM"),
        ("mixtral", "MixtralForSequenceClassification"),
        ("glm4", "Glm4ForSequenceClassification"),
    ] {
        let workspace = super::experts::workspace(case);
        workspace.train(1, &["train.steps=1"]).succeeded();
        workspace.run(1, &["export", "run/step-1", "out"]).succeeded();
        for folder in ["run/step-1", "out"] {
            assert_eq!(config(&workspace, folder)["architectures"], json!([class]), "{folder}");
            let held = Tensor::read_safetensors(workspace.path(format!("{folder}/model.safetensors"))).unwrap();
            let head = held.iter().find(|(name, _)| name == "score.weight").map(|(_, head)| head.size());
            let width = config(&workspace, folder)["hidden_size"].as_i64().unwrap();
            assert_eq!(head, Some(vec![1, width]), "{case}, {folder}");
            let card = fs::read_to_string(workspace.path(format!("{folder}/README.md")));
            assert_eq!(card.is_ok(), class.ends_with("ForCausalLM"), "{case}, {folder}");
            let Ok(card) = card else { continue };
            for part in ["no sequence classification class", "`score.weight`, [1, width], f32", "AutoModelForCausalLM"]
            {
                assert!(card.contains(part), "{case}, {folder}: {part:?} is not in {card}");
            }
        }
    }
}

#[test]
fn no_end_token_of_the_models_config_becomes_the_padding() {
    let workspace = Workspace::new();
    let path = Path::new("model/config.json");
    let mut config: Value = serde_json::from_slice(&workspace.read(path.to_str().unwrap())).unwrap();
    // The token that the run would pad with otherwise, as the test above says.
    config["eos_token_id"] = json!([EOS, 7]);
    workspace.write("model/config.json", &config.to_string());
    workspace.train(1, &["train.steps=1"]).succeeded();
    assert_eq!(self::config(&workspace, "run/step-1")["pad_token_id"], 6);
}
