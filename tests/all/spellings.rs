//! Promise: a key that a file leaves out, has empty, or has in the other place means what Transformers 5.24 makes of it; and a
//! config.json that is wrong in several places is refused with each of them.
//!
//! Not here: both spellings of whole rotations, and single refusals (`families.rs`).

use crate::families::config;
use haf_dist::model::architecture::{Architecture, RopeScaling};
use serde_json::{Value, json};

fn read(config: &Value) -> Architecture {
    Architecture::parse(&config.to_string()).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that is wrong with a config.json.
fn reasons(config: &Value) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Architecture::open_all(folder.path()).unwrap_err().into_iter().map(|error| error.message).collect()
}

#[test]
fn an_empty_rope_scaling_says_nothing() {
    let mut spelled = config("llama-linear");
    spelled["rope_scaling"] = json!({});
    assert_eq!(read(&spelled), read(&config("llama-linear")));
    // Control: one that says something counts.
    spelled["rope_scaling"] = json!({"rope_type": "linear", "factor": 3.0});
    assert_eq!(read(&spelled).rotations[0].rope.scaling, RopeScaling::Linear { factor: 3.0 });
}

#[test]
fn the_base_outside_the_sets_of_olmo_3_is_that_of_blocks_without_a_window() {
    let mut spelled = config("olmo3");
    let keys = spelled.as_object_mut().unwrap();
    keys.shift_remove("rope_parameters");
    keys.insert("rope_theta".into(), json!(7.0));
    let thetas = |config: &Value| read(config).rotations.iter().map(|one| one.rope.theta).collect::<Vec<_>>();
    assert_eq!(thetas(&spelled), [7.0, 500_000.0]);
    spelled["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    assert_eq!(thetas(&spelled), [7.0, 500_000.0]);
    // A base in the older set is that of the same blocks.
    let whole = read(&config("olmo3"));
    spelled["rope_scaling"] = config("olmo3")["rope_parameters"]["full_attention"].clone();
    assert_eq!(read(&spelled).rotations[0], whole.rotations[0]);
    // Gemma 3 has a key of its own for the others.
    let mut spelled = config("gemma3");
    let keys = spelled.as_object_mut().unwrap();
    keys.shift_remove("rope_parameters");
    keys.extend([("rope_theta".into(), json!(7.0)), ("rope_local_base_freq".into(), json!(5.0))]);
    assert_eq!(thetas(&spelled), [7.0, 5.0]);
}

#[test]
fn queries_grow_beyond_the_longest_context_if_no_first_one_is_given() {
    let mut spelled = config("ministral3");
    spelled["max_position_embeddings"] = json!(64);
    spelled["rope_parameters"].as_object_mut().unwrap().shift_remove("original_max_position_embeddings");
    let rotation = &read(&spelled).rotations[0];
    assert_eq!(rotation.query_growth.unwrap().original, 64.0);
    assert!(matches!(rotation.rope.scaling, RopeScaling::Yarn { original: 64.0, .. }));
    assert_eq!(read(&config("ministral3")).rotations[0].query_growth.unwrap().original, 6.0);
}

#[test]
fn yarn_takes_its_attention_factor_and_truncation_from_the_file() {
    let mut spelled = config("ministral3");
    let read_yarn = |config: &Value| match read(config).rotations[0].rope.scaling {
        RopeScaling::Yarn { truncate, magnitude, .. } => (truncate, magnitude),
        ref other => panic!("{other:?}"),
    };
    let (truncate, magnitude) = read_yarn(&spelled);
    assert!(truncate && magnitude != 1.25);
    spelled["rope_parameters"]["truncate"] = json!(false);
    spelled["rope_parameters"]["attention_factor"] = json!(1.25);
    assert_eq!(read_yarn(&spelled), (false, 1.25));
}

#[test]
fn a_window_of_some_blocks_that_is_null_needs_a_list_of_blocks() {
    for case in ["gemma2", "gemma3", "olmo3"] {
        let mut spelled = config(case);
        spelled["sliding_window"] = json!(null);
        spelled["layer_types"] = json!(["full_attention", "full_attention"]);
        assert!(read(&spelled).blocks.iter().all(|block| block.rules.window.is_none()), "{case}");
        spelled.as_object_mut().unwrap().shift_remove("layer_types");
        let found = reasons(&spelled);
        assert!(found.len() == 1 && found[0].contains("sliding_window is null"), "{case}: {found:#?}");
    }
}

#[test]
fn every_reason_is_given_at_once() {
    let mut wrong = config("llama-untied");
    wrong["num_key_value_heads"] = json!(3);
    wrong["head_dim"] = json!(5);
    wrong["hidden_act"] = json!("relu6");
    wrong["rope_parameters"]["rope_type"] = json!("spiral");
    let found = reasons(&wrong);
    for says in ["num_key_value_heads = 3", "head_dim = 5", "hidden_act = \"relu6\"", "\"spiral\""] {
        assert_eq!(found.iter().filter(|reason| reason.contains(says)).count(), 1, "{says}: {found:#?}");
    }
}

#[test]
fn a_key_that_is_wrong_hides_no_other() {
    let mut wrong = config("qwen3-moe");
    for (key, value) in [
        ("hidden_size", json!("wide")),
        ("num_hidden_layers", json!(null)),
        ("num_key_value_heads", json!(-1)),
        ("vocab_size", json!(0.5)),
        ("hidden_act", json!("relu6")),
        ("layer_types", json!(["linear_attention"])),
        ("moe_intermediate_size", json!(null)),
        ("num_local_experts", json!("many")),
        ("mlp_only_layers", json!(3)),
        ("norm_topk_prob", json!("yes")),
        ("sliding_window", json!(0)),
        ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 0, "factor": "two", "low_freq_factor": 1.0})),
    ] {
        wrong[key] = value;
    }
    let found = reasons(&wrong);
    let expected = [
        "layer_types: \"linear_attention\": this kind of block is not computed",
        "hidden_size = \"wide\": a whole number from 1",
        "vocab_size = 0.5: a whole number from 1",
        "num_key_value_heads = -1: a whole number from 1",
        "num_hidden_layers is missing",
        "rope_theta = 0: a number above 0",
        "factor = \"two\": a number above 0",
        "high_freq_factor is missing",
        "hidden_act = \"relu6\": this activation is not computed",
        "moe_intermediate_size is missing",
        "mlp_only_layers = 3: a list of whole numbers",
        "norm_topk_prob = \"yes\": true or false",
        "num_local_experts = \"many\": a whole number from 1",
        "sliding_window = 0: a whole number above 0",
    ];
    for says in expected {
        assert_eq!(found.iter().filter(|reason| reason.contains(says)).count(), 1, "{says}: {found:#?}");
    }
    // Nothing follows from values that stand in for wrong ones.
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    read(&config("qwen3-moe"));
}

#[test]
fn a_missing_feature_is_distinguished_from_a_wrong_value() {
    let hint = |key: &str, value: Value| {
        let mut wrong = config("olmoe");
        wrong[key] = value;
        Architecture::parse(&wrong.to_string()).unwrap_err().hint.unwrap()
    };
    let lacking = hint("clip_qkv", json!(8.0));
    assert!(lacking.contains("changing it would change the model") && lacking.contains("clip_qkv = null"), "{lacking}");
    let wrong = hint("vocab_size", json!("many"));
    assert!(wrong.contains("write a whole number from 1") && !wrong.contains("change the model"), "{wrong}");
}

/// As Devstral 2 has them: zeros that turn a part of the set off.
#[test]
fn zeros_in_the_set_of_yarn_count_as_missing() {
    let mut spelled = config("ministral3");
    let set = spelled["rope_parameters"].as_object_mut().unwrap();
    set.insert("mscale_all_dim".into(), json!(0.0));
    set.insert("llama_4_scaling_beta".into(), json!(0.0));
    let rotation = read(&spelled).rotations[0].clone();
    assert_eq!(rotation.query_growth, None);
    let set = spelled["rope_parameters"].as_object_mut().unwrap();
    set.shift_remove("mscale_all_dim");
    set.shift_remove("llama_4_scaling_beta");
    assert_eq!(read(&spelled).rotations[0], rotation);
}

#[test]
fn a_kind_of_block_that_is_not_known_is_refused_in_every_family() {
    for case in [
        "llama-tied",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3-moe",
        "mixtral",
        "olmoe",
        "phi",
        "phi3",
        "gemma2",
        "gemma3",
        "olmo2",
        "olmo3",
        "granite",
        "exaone4",
        "glm4",
        "cohere2",
        "smollm3",
        "gpt-neox-parallel",
    ] {
        let mut wrong = config(case);
        let blocks = wrong["num_hidden_layers"].as_u64().unwrap() as usize;
        let kinds = |kind: &str| json!(vec![kind; blocks]);
        wrong["layer_types"] = kinds("linear_attention");
        let found = reasons(&wrong);
        let named = found.iter().filter(|reason| reason.contains("layer_types: \"linear_attention\"")).count();
        assert_eq!(named, 1, "{case}: {found:#?}");
        wrong["layer_types"] = kinds("full_attention");
        read(&wrong);
    }
}

#[test]
fn experts_that_cannot_be_computed_are_refused_with_their_key() {
    for (case, key, value, says) in [
        ("qwen3-moe", "num_experts_per_tok", json!(6), "num_experts_per_tok = 6"),
        ("qwen3-moe", "num_local_experts", json!(5000), "num_local_experts = 5000"),
        ("qwen3-moe", "mlp_only_layers", json!(0), "mlp_only_layers"),
        ("qwen3-moe", "decoder_sparse_step", json!(0), "decoder_sparse_step = 0"),
        ("qwen3-moe", "moe_intermediate_size", json!(null), "moe_intermediate_size is missing"),
        ("mixtral", "num_local_experts", json!(null), "num_experts is missing"),
        ("olmoe", "clip_qkv", json!(8.0), "clip_qkv"),
    ] {
        let mut wrong = config(case);
        wrong[key] = value;
        let found = reasons(&wrong);
        assert!(found.iter().any(|reason| reason.contains(says)), "{case}: {found:#?}");
        read(&config(case));
    }
    // Either name of the number of experts.
    let mut spelled = config("qwen3-moe");
    let count = spelled.as_object_mut().unwrap().shift_remove("num_local_experts").unwrap();
    spelled["num_experts"] = count;
    assert_eq!(read(&spelled), read(&config("qwen3-moe")));
}

#[test]
fn experts_are_in_the_blocks_that_the_file_says() {
    for (step, dense, expected) in [
        (1, json!(null), [true; 4]),
        (1, json!([0, 2]), [false, true, false, true]),
        (2, json!([]), [false, true, false, true]),
        (2, json!([1]), [false, false, false, true]),
        (5, json!([]), [false; 4]),
    ] {
        let mut spelled = config("qwen3-moe");
        spelled["num_hidden_layers"] = json!(4);
        (spelled["decoder_sparse_step"], spelled["mlp_only_layers"]) = (json!(step), dense);
        let model = read(&spelled);
        assert_eq!(model.blocks.iter().map(|block| block.mlp.experts.is_some()).collect::<Vec<_>>(), expected);
        // Dense ones have the width that the key says; of experts it is another.
        for block in &model.blocks {
            assert_eq!(block.mlp.width, if block.mlp.experts.is_some() { 7 } else { 8 });
        }
    }
}
