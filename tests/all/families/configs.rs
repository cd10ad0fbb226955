//! Promise: a family's config.json is read as Transformers reads it, and what cannot be computed is refused with its key.

use super::{CASES, config, folder};
use haf_dist::model::architecture::{Architecture, FAMILIES, RopeScaling};
use haf_dist::model::layout::Part;
use serde_json::{Value, json};
use std::fs;

/// As the hub has them: config.json in the keys of Transformers 4, and the number of parameters.
#[test]
fn published_models_have_their_number_of_parameters() {
    let sizes = |vocabulary: usize, width: usize, mlp: usize, layers: usize, heads: usize, kv: usize| {
        json!({"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": mlp,
               "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv})
    };
    let published = [
        ("llama", sizes(32_000, 4096, 11_008, 32, 32, 32), json!({}), 6_738_415_616usize),
        ("mistral", sizes(32_000, 4096, 14_336, 32, 32, 8), json!({}), 7_241_732_096),
        ("qwen2", sizes(151_936, 896, 4864, 24, 14, 2), json!({"tie_word_embeddings": true}), 494_032_768),
        ("qwen3", sizes(151_936, 1024, 3072, 28, 16, 8), json!({"tie_word_embeddings": true}), 596_049_920),
        ("phi", sizes(51_200, 2560, 10_240, 32, 32, 32), json!({"partial_rotary_factor": 0.4}), 2_779_683_840),
        ("phi3", sizes(32_064, 3072, 8192, 32, 32, 32), json!({"sliding_window": 2047}), 3_821_079_552),
        ("gemma2", sizes(256_000, 2304, 9216, 26, 8, 4), json!({}), 2_614_341_888),
        ("gemma3_text", sizes(262_144, 1152, 6912, 26, 4, 1), json!({}), 999_885_952),
        ("olmo3", sizes(100_278, 4096, 11_008, 32, 32, 32), json!({}), 7_298_011_136),
        ("exaone4", sizes(102_400, 2048, 4096, 30, 32, 8), json!({"tie_word_embeddings": true}), 1_279_391_488),
        ("granite", sizes(49_155, 2048, 8192, 40, 32, 8), json!({"tie_word_embeddings": true}), 2_533_531_648),
        (
            "phi3",
            sizes(200_064, 3072, 8192, 32, 24, 8),
            json!({"tie_word_embeddings": true, "partial_rotary_factor": 0.75, "max_position_embeddings": 131_072,
                   "original_max_position_embeddings": 4096,
                   "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.0; 48]}}),
            3_836_021_760,
        ),
        (
            "gemma3",
            json!({}),
            // As the hub has the 4B model's: most keys are the class's.
            json!({"text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240,
                                   "num_hidden_layers": 34, "sliding_window": 1024,
                                   "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
                   "vision_config": {"hidden_size": 1152}}),
            3_880_263_168,
        ),
        ("olmo2", sizes(100_352, 2048, 8192, 16, 16, 16), json!({}), 1_484_916_736),
        ("smollm3", sizes(128_256, 2048, 11_008, 36, 16, 4), json!({}), 3_075_098_624),
        ("gpt_neox", sizes(50_304, 512, 2048, 6, 8, 8), json!({"rotary_pct": 0.25}), 70_426_624),
    ];
    for (family, mut config, more, expected) in published {
        config["model_type"] = json!(family);
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let model = Architecture::parse(&config.to_string()).unwrap();
        let parts = Part::all(&model).into_iter().filter(|part| *part != Part::RewardHead);
        let declared = parts.flat_map(|part| part.parameters(&model));
        let count = declared.map(|one| one.shape.iter().product::<i64>() as usize).sum::<usize>();
        assert_eq!(count, expected, "{family}");
    }
}

#[test]
fn both_spellings_of_a_config_are_one_model() {
    for (case, old) in [
        ("mistral", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        ("phi", json!({"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": null})),
        ("phi3", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        ("gemma2", json!({"rope_theta": 10000.0, "layer_types": null})),
        ("granite", json!({"rope_theta": 10000.0, "rope_scaling": null})),
        (
            "olmo3",
            json!({"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "rope_theta": 100.0, "factor": 4.0,
                   "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.1}}),
        ),
        (
            "phi3-longrope",
            json!({"partial_rotary_factor": 0.75, "rope_theta": 100.0,
                   "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.5, 4.0]}}),
        ),
        ("llama-dynamic", json!({"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 6.0}})),
        ("gpt-neox-parallel", json!({"rotary_emb_base": 10000, "rotary_pct": 0.5, "rope_scaling": null})),
    ] {
        let new = config(case);
        let mut spelled = new.clone();
        let keys = spelled.as_object_mut().unwrap();
        assert!(keys.shift_remove("rope_parameters").is_some());
        keys.extend(old.as_object().unwrap().clone());
        let [new, old] = [new, spelled].map(|config| Architecture::parse(&config.to_string()).unwrap());
        assert_eq!(new, old, "{case}");
    }
    // Where a file has both, Transformers takes the older one; Llama 3's original length may stand beside it or be missing.
    let mut config = config("llama-tied");
    config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    config["rope_scaling"] = llama3;
    let original = |config: &Value| match &Architecture::parse(&config.to_string()).unwrap().rotations[0].rope.scaling {
        RopeScaling::Llama3 { original, .. } => *original,
        other => panic!("{other:?}"),
    };
    config["max_position_embeddings"] = json!(2048);
    assert_eq!(original(&config), 2048.0);
    config["rope_scaling"]["original_max_position_embeddings"] = json!(512);
    assert_eq!(original(&config), 512.0);
    config["original_max_position_embeddings"] = json!(256);
    assert_eq!(original(&config), 256.0);
}

#[test]
fn windows_are_where_the_family_or_the_list_says() {
    let windows = |case: &str, key: &str, value: Option<Value>| -> Vec<Option<usize>> {
        let mut config = config(case);
        config.as_object_mut().unwrap().shift_remove("layer_types");
        match value {
            Some(value) => config[key] = value,
            None => drop(config.as_object_mut().unwrap().shift_remove(key)),
        }
        let model = Architecture::parse(&config.to_string()).unwrap();
        model.blocks.iter().map(|block| block.rules.window).collect()
    };
    let list = |kinds: [&str; 2]| Some(json!(kinds.map(|kind| format!("{kind}_attention"))));
    for (case, key, value, expected) in [
        ("mistral", "sliding_window", Some(json!(4)), [Some(4), Some(4)]),
        ("mistral", "sliding_window", Some(json!(null)), [None, None]),
        ("mistral", "sliding_window", None, [Some(4096), Some(4096)]),
        ("phi3", "sliding_window", None, [None, None]),
        ("qwen2", "max_window_layers", Some(json!(1)), [None, Some(3)]),
        ("qwen2", "max_window_layers", Some(json!(0)), [Some(3), Some(3)]),
        ("qwen2", "use_sliding_window", Some(json!(false)), [None, None]),
        ("qwen2", "layer_types", list(["sliding", "full"]), [Some(3), None]),
        ("gemma2", "layer_types", None, [Some(3), None]),
        ("gemma2", "layer_types", list(["full", "sliding"]), [None, Some(3)]),
    ] {
        assert_eq!(windows(case, key, value.clone()), expected, "{case}, {key} = {value:?}");
    }
}

#[test]
fn what_cannot_be_computed_is_refused_with_its_key() {
    let rope = |kind: &str| json!({"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0});
    let share = |share: f64| json!({"rope_theta": 10000.0, "partial_rotary_factor": share});
    for (case, key, value, says) in [
        ("llama-tied", "model_type", json!("gpt2"), "\"gpt2\""),
        ("llama-tied", "hidden_size", json!(0), "hidden_size = 0"),
        ("llama-tied", "hidden_size", json!(null), "hidden_size is missing"),
        ("llama-tied", "hidden_size", json!(1u64 << 62), "hidden_size = 4611686018427387904"),
        ("llama-tied", "num_hidden_layers", json!(1_000_000), "num_hidden_layers = 1000000"),
        ("llama-tied", "vocab_size", json!("many"), "vocab_size = \"many\""),
        ("llama-tied", "partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5"),
        ("llama-tied", "rope_parameters", json!({"rope_type": "linear"}), "factor is missing"),
        ("mistral", "num_key_value_heads", json!(3), "num_key_value_heads = 3"),
        ("mistral", "sliding_window", json!(0), "sliding_window = 0"),
        ("qwen2", "layer_types", json!(["full_attention"]), "layer_types names 1"),
        ("qwen2", "layer_types", json!(["full_attention", "chunked_attention"]), "\"chunked_attention\""),
        ("qwen2", "use_sliding_window", json!(false), "no sliding_window"),
        ("qwen3", "head_dim", json!(5), "head_dim = 5"),
        ("phi", "qk_layernorm", json!(true), "qk_layernorm = true"),
        ("phi", "tie_word_embeddings", json!(true), "tie_word_embeddings = true"),
        ("phi", "hidden_act", json!("relu6"), "hidden_act = \"relu6\""),
        ("phi3", "rope_parameters", rope("longrope"), "short_factor is missing"),
        ("phi3", "rope_parameters", rope("yarn"), "short_factor is missing"),
        ("phi3", "rope_parameters", rope("spiral"), "\"spiral\""),
        (
            "phi3-longrope",
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}),
            "short_factor has 2 numbers, expected 4",
        ),
        ("llama-tied", "rope_parameters", json!({"llama_4_scaling_beta": 0.1}), "llama_4_scaling_beta"),
        ("olmo3", "rope_parameters", rope("default"), "two rotations"),
        ("ministral3", "rope_parameters", json!(null), "rope_parameters is missing"),
        ("granite", "residual_multiplier", json!("half"), "residual_multiplier = \"half\""),
        ("gemma3", "model_type", json!("gemma3"), "text_config is missing"),
        ("gemma2", "query_pre_attn_scalar", json!(-1), "query_pre_attn_scalar = -1"),
        ("gemma2", "use_bidirectional_attention", json!(true), "use_bidirectional_attention = true"),
        ("gemma2", "rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "rope_parameters"),
        ("gemma3", "rope_parameters", rope("default"), "two rotations"),
        ("smollm3", "no_rope_layers", json!([1]), "no_rope_layers names 1 blocks"),
        ("gpt-neox-parallel", "rope_parameters", share(0.2), "partial_rotary_factor = 0.2"),
        ("gpt-neox-parallel", "rope_parameters", share(1.5), "partial_rotary_factor = 1.5"),
        ("gpt-neox-parallel", "num_attention_heads", json!(5), "num_attention_heads = 5"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = config(case);
        changed[key] = value.clone();
        fs::write(folder.path().join("config.json"), changed.to_string()).unwrap();
        let error = Architecture::open(folder.path()).expect_err(&format!("{case}, {key} = {value}"));
        assert!(error.message.contains("config.json: ") && error.message.contains(says), "{error}");
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        if key == "model_type" && value != "gemma3" {
            let families = FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
            assert!(error.hint.unwrap().contains(&families));
        }
        // Control: the case itself is read.
        Architecture::open(&self::folder(case)).unwrap();
    }
}

#[test]
fn no_value_of_any_key_is_met_with_a_panic() {
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(1u64 << 20),
        json!(u64::MAX),
        json!(0.3),
        json!(1e300),
        json!("sliding_attention"),
        json!([]),
        json!(["full_attention", 1]),
        json!({"rope_type": 1}),
        json!({"rope_theta": -1, "partial_rotary_factor": 1e-9}),
    ];
    let (mut read, mut refused) = (0, 0);
    for case in CASES {
        let config = config(case);
        for key in config.as_object().unwrap().keys() {
            for value in &values {
                let mut changed = config.clone();
                changed[key] = value.clone();
                match Architecture::parse(&changed.to_string()) {
                    Ok(model) => {
                        let parts = Part::all(&model).into_iter();
                        read += parts.map(|part| part.parameters(&model).len()).sum::<usize>();
                        let layers = changed["num_hidden_layers"].as_u64();
                        assert_eq!(Some(model.blocks.len() as u64), layers);
                    }
                    Err(error) => {
                        assert!(error.exit_code() == 2 && !error.message.is_empty(), "{case}, {key} = {value}");
                        refused += 1;
                    }
                }
            }
        }
        for cut in (0..config.to_string().len()).step_by(7) {
            assert!(Architecture::parse(&config.to_string()[..cut]).is_err());
        }
    }
    // Both happen, and often.
    assert!(read > 10_000 && refused > 300, "{read}, {refused}");
}
