//! Promise: the golden files notice a model that lacks one of its specialities, or has another threshold: some loss or gradient
//! is off by far more than they allow.
//!
//! Not here: that unchanged models agree with them (`golden.rs`).

use crate::families::{config, tensors, written};
use crate::golden::{Golden, check, check_within};
use haf_dist::data::batch::Packing;
use haf_dist::model::architecture::{Architecture, Experts, NormKind, Residual, RopeScaling};
use haf_dist::model::declared::Rows;
use haf_dist::ops::Activation;

/// Moves a threshold of a rotation.
type Move = fn(&mut RopeScaling);

/// A hundred times what a case may be off.
const FAR: [f64; 2] = [1e-3; 2];

/// Asserts that the case is far off where its description is changed.
fn notice(case: &str, what: &str, change: &dyn Fn(&mut Architecture)) {
    let golden = Golden::open(case, "golden.safetensors");
    let mut engine = golden.engine_of(&golden.folder, false, change);
    let outcome = check_within(FAR, &golden, &mut engine, Packing::Shared, 5);
    assert!(outcome.is_err(), "{case} without {what}: {outcome:?}");
}

/// Changes the scaling of a rotation.
fn scaling(rotation: usize, change: fn(&mut RopeScaling)) -> impl Fn(&mut Architecture) {
    move |model| change(&mut model.rotations[rotation].rope.scaling)
}

#[test]
fn control_a_model_without_one_of_its_specialities_is_noticed() {
    let no_window = |model: &mut Architecture| model.blocks.iter_mut().for_each(|block| block.rules.window = None);
    let residual = |residual: Residual| {
        move |model: &mut Architecture| model.blocks.iter_mut().for_each(|block| block.residual = residual)
    };
    for case in [
        "mistral",
        "mistral-some-windows",
        "qwen2",
        "phi3",
        "gemma2",
        "gemma3",
        "smollm3",
        "olmo3",
        "exaone4",
        "cohere2",
        "qwen3-moe",
        "mixtral",
    ] {
        notice(case, "its window", &no_window);
        // By one token: some sequence lies between.
        notice(case, "its window's length", &|model| {
            model.blocks.iter_mut().filter_map(|block| block.rules.window.as_mut()).for_each(|window| *window += 1);
        });
    }
    for case in ["mistral-some-windows", "qwen2", "gemma2", "gemma3", "smollm3", "olmo3", "exaone4", "cohere2"] {
        notice(case, "the blocks' own rules", &|model| model.blocks.reverse());
    }
    notice("gemma2", "capped scores", &|model| {
        model.blocks.iter_mut().for_each(|block| block.rules.soft_cap = None);
    });
    notice("gemma2", "capped logits", &|model| model.logit_cap = None);
    notice("gemma2", "scaled embeddings", &|model| model.embedding_scale = None);
    notice("gemma2", "weights counted from 1", &|model| model.norm = NormKind::RootMeanSquare);
    notice("gemma2", "its activation", &|model| {
        model.blocks.iter_mut().for_each(|block| block.mlp.kind.activation = Activation::Gelu);
    });
    let no_norms = |model: &mut Architecture| model.norm = NormKind::RootMeanSquare;
    notice("gemma3", "weights counted from 1", &no_norms);
    notice("gemma3", "two rotations", &|model| model.blocks.iter_mut().for_each(|block| block.rotation = Some(0)));
    notice("smollm3", "a block without rotation", &|model| model.blocks[1].rotation = Some(0));
    let other_passage: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Yarn { slow, .. } => *slow *= 4.0,
        other => panic!("{other:?}"),
    };
    let no_magnitude: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Yarn { magnitude, .. } | RopeScaling::Long { magnitude, .. } => *magnitude = 1.0,
        other => panic!("{other:?}"),
    };
    // By one token: some sequence lies between.
    let later: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Dynamic { original, .. } | RopeScaling::Long { original, .. } => *original += 1,
        other => panic!("{other:?}"),
    };
    for (case, change) in
        [("olmo3", other_passage), ("olmo3", no_magnitude), ("ministral3", other_passage), ("ministral3", no_magnitude)]
    {
        notice(case, "its own YaRN", &scaling(0, change));
    }
    let whole_borders: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Yarn { truncate, .. } => *truncate = true,
        other => panic!("{other:?}"),
    };
    notice("llama-yarn", "borders between whole numbers", &scaling(0, whole_borders));
    notice("llama-yarn", "a magnitude of its own", &scaling(0, no_magnitude));
    for case in ["llama-dynamic", "phi3-longrope"] {
        notice(case, "its limit", &scaling(0, later));
    }
    notice("phi3-longrope", "its magnitude", &scaling(0, no_magnitude));
    notice("olmo3", "two rotations", &|model| model.blocks.iter_mut().for_each(|block| block.rotation = Some(0)));
    notice("ministral3", "growing queries", &|model| model.rotations[0].query_growth = None);
    notice("ministral3", "its first context", &|model| {
        model.rotations[0].query_growth.iter_mut().for_each(|growth| growth.original += 1.0);
    });
    let experts = |change: fn(&mut Experts)| {
        move |model: &mut Architecture| {
            model.blocks.iter_mut().filter_map(|block| block.mlp.experts.as_mut()).for_each(change);
        }
    };
    for case in ["qwen3-moe", "qwen3-moe-mixed", "mixtral", "olmoe"] {
        notice(case, "its number of experts a token", &experts(|experts| experts.top_k += 1));
        notice(case, "its way to weigh experts", &experts(|experts| experts.normalized = !experts.normalized));
    }
    notice("granite", "scaled embeddings", &|model| model.embedding_scale = None);
    notice("granite", "scaled logits", &|model| model.logit_scale = None);
    notice("granite", "scaled halves", &|model| {
        model.blocks.iter_mut().for_each(|block| block.residual_scale = None);
    });
    notice("exaone4", "a block without rotation", &|model| model.blocks[1].rotation = Some(0));
    notice("cohere2", "a block without rotation", &|model| model.blocks[1].rotation = Some(0));
    notice("cohere2", "scaled logits", &|model| model.logit_scale = None);
    notice("cohere2", "its residual", &residual(Residual::Sequential));
    notice("cohere2", "centered norms", &|model| model.norm = NormKind::RootMeanSquare);
    for case in ["glm", "glm4"] {
        notice(case, "partial rotation", &|model| {
            (model.rotations[0].width, model.rotations[0].period) = (2, 2);
        });
    }
    notice("gpt-neox-odd", "frequencies of three columns", &|model| model.rotations[0].period = 4);
    notice("gpt-neox-odd", "its activation", &|model| {
        model.blocks.iter_mut().for_each(|block| block.mlp.kind.activation = Activation::Gelu);
    });
    notice("phi", "its residual", &residual(Residual::Sequential));
    notice("phi", "partial rotation", &|model| model.rotations[0].width = model.blocks[0].heads.width);
    notice("gpt-neox-parallel", "its residual", &residual(Residual::Sequential));
    notice("gpt-neox-sequential", "its residual", &residual(Residual::Parallel));
}

#[test]
fn control_another_number_in_a_rotation_is_noticed() {
    // By one token.
    let later: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Yarn { original, .. } | RopeScaling::Llama3 { original, .. } => *original += 1.0,
        other => panic!("{other:?}"),
    };
    notice("llama-yarn", "its limit", &scaling(0, later));
    notice("llama-untied", "its limit", &scaling(0, later));
    // Here the borders of the passage are whole numbers: a token more moves none of them.
    let twice_as_late: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Yarn { original, truncate: true, .. } => *original *= 2.0,
        other => panic!("{other:?}"),
    };
    for case in ["olmo3", "ministral3"] {
        notice(case, "its limit", &scaling(0, twice_as_late));
    }
    let other_factor: fn(&mut RopeScaling) = |scaling| match scaling {
        RopeScaling::Linear { factor }
        | RopeScaling::Dynamic { factor, .. }
        | RopeScaling::Yarn { factor, .. }
        | RopeScaling::Llama3 { factor, .. } => *factor *= 1.25,
        other => panic!("{other:?}"),
    };
    for case in ["llama-linear", "gemma3", "llama-dynamic", "llama-yarn", "olmo3", "ministral3", "llama-untied"] {
        notice(case, "its factor", &scaling(0, other_factor));
    }
    let borders: [(&str, Move); 4] = [
        ("its lower border", |scaling| match scaling {
            RopeScaling::Llama3 { low_factor, .. } => *low_factor *= 1.25,
            other => panic!("{other:?}"),
        }),
        ("its upper border", |scaling| match scaling {
            RopeScaling::Llama3 { high_factor, .. } => *high_factor *= 1.25,
            other => panic!("{other:?}"),
        }),
        ("a wavelength that is divided whole", |scaling| match scaling {
            RopeScaling::Llama3 { low_factor, .. } => *low_factor = 0.2,
            other => panic!("{other:?}"),
        }),
        ("a wavelength that is kept", |scaling| match scaling {
            RopeScaling::Llama3 { high_factor, .. } => *high_factor = 8.0,
            other => panic!("{other:?}"),
        }),
    ];
    for (what, change) in borders {
        notice("llama-untied", what, &scaling(0, change));
    }
    let divisors: [(&str, Move); 2] = [
        ("its divisors for short sequences", |scaling| match scaling {
            RopeScaling::Long { short, .. } => short[1] *= 1.25,
            other => panic!("{other:?}"),
        }),
        ("its divisors for long sequences", |scaling| match scaling {
            RopeScaling::Long { long, .. } => long[1] *= 1.25,
            other => panic!("{other:?}"),
        }),
    ];
    for (what, change) in divisors {
        notice("phi3-longrope", what, &scaling(0, change));
    }
    notice("ministral3", "how fast its queries grow", &|model| {
        model.rotations[0].query_growth.iter_mut().for_each(|growth| growth.beta *= 1.25);
    });
}

#[test]
fn control_scores_with_another_scale_are_noticed() {
    for case in ["granite", "gemma2", "gemma3"] {
        notice(case, "its own scale of scores", &|model| {
            model.blocks.iter_mut().for_each(|block| block.rules.scale *= 1.25);
        });
    }
}

#[test]
fn control_norms_of_queries_and_keys_without_their_weights_are_noticed() {
    for case in ["qwen3", "qwen3-moe", "qwen3-moe-mixed", "olmoe", "gemma3", "olmo2", "olmo3", "exaone4"] {
        for norm in ["q_norm", "k_norm"] {
            let golden = Golden::open(case, "golden.safetensors");
            let mut engine = golden.engine_of(&golden.folder, false, &|_| ());
            let neutral = if engine.model.architecture.norm == NormKind::RootMeanSquarePlusOne { 0.0 } else { 1.0 };
            let mut changed = 0;
            for segment in &mut engine.model.segments {
                for index in 0..segment.parameters().len() {
                    if segment.parameters()[index].name.contains(norm) {
                        segment.set(index, &segment.value(index).full_like(neutral));
                        changed += 1;
                    }
                }
            }
            assert_eq!(changed, engine.model.architecture.blocks.len(), "{case}");
            let outcome = check_within(FAR, &golden, &mut engine, Packing::Shared, 5);
            assert!(outcome.is_err(), "{case} with {norm} of weight {neutral}: {outcome:?}");
        }
    }
}

#[test]
fn control_a_model_without_norms_of_queries_and_keys_is_noticed() {
    // Llama is what Qwen 3 would be without them.
    let mut held = tensors("qwen3");
    held.retain(|name, _| !name.contains("q_norm") && !name.contains("k_norm"));
    let folder = written("qwen3", &held, 1);
    let mut config = config("qwen3");
    config["model_type"] = "llama".into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let golden = Golden::open("qwen3", "golden.safetensors");
    let mut engine = golden.engine_of(folder.path(), false, &|_| ());
    let outcome = check_within(FAR, &golden, &mut engine, Packing::Shared, 5).unwrap_err();
    // By what is computed, before the gradients are counted.
    assert!(!outcome.contains("compared"), "{outcome}");
}

#[test]
fn control_columns_that_turn_with_others_are_noticed() {
    for case in ["glm", "glm4", "cohere2"] {
        let golden = Golden::open(case, "golden.safetensors");
        let mut engine = golden.engine_of(&golden.folder, false, &|_| ());
        let mut changed = 0;
        for segment in &mut engine.model.segments {
            for index in 0..segment.parameters().len() {
                let rows = segment.parameters()[index].rows;
                if matches!(rows, Rows::Neighbors { .. }) {
                    // In the file's order the halves of a head turn together.
                    let as_in_the_file = rows.to_file(&segment.value(index));
                    segment.set(index, &as_in_the_file);
                    changed += 1;
                }
            }
        }
        assert!(changed > 0, "{case}");
        let outcome = check(&golden, &mut engine, Packing::Shared, 5);
        assert!(outcome.is_err(), "{case} with the halves of a head turned together: {outcome:?}");
    }
}
