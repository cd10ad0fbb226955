//! Promise: from the config.json of published models follows their number of parameters.
//!
//! Not here: their tensors and what is computed (`families.rs`, `golden.rs`).

use haf_dist::model::architecture::Architecture;
use haf_dist::model::decoder::Part;
use serde_json::json;

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
        ("glm", sizes(151_552, 4096, 13_696, 40, 32, 2), json!({}), 9_399_951_360),
        ("glm4", sizes(151_552, 4096, 13_696, 40, 32, 2), json!({}), 9_400_279_040),
        ("cohere2", sizes(256_000, 4096, 14_336, 32, 32, 8), json!({}), 8_028_033_024),
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
