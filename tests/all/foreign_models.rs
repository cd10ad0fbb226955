//! Promise: a model's folder that another program wrote is read correctly, whatever the names of its tensors and its reward head,
//! or refused with the reason; quantized numbers are never read as weights, and no head is silently zero.
//!
//! Not here: families and kinds of numbers (families.rs), adapters that fit (lora.rs), damaged bytes (damaged.rs).

use crate::families;
use haf_dist::error::{Error, Result};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::layout::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weight_files::weight_paths;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::{Entry, Mapped, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

type Tensors = BTreeMap<String, Tensor>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn read(path: &Path) -> Tensors {
    let file = Mapped::open(path).unwrap();
    file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

fn put(path: &Path, tensors: &Tensors) {
    let _ = fs::remove_file(path);
    let entries: Vec<Entry> = tensors.iter().map(|(name, tensor)| Entry::of(name, tensor)).collect();
    write(path, &entries, &BTreeMap::new()).unwrap();
}

/// A case's model, to be changed.
struct Folder {
    place: tempfile::TempDir,
    tensors: Tensors,
    width: i64,
}

impl Folder {
    fn of(case: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::copy(golden(case).join("config.json"), place.path().join("config.json")).unwrap();
        let config: Value =
            serde_json::from_str(&fs::read_to_string(golden(case).join("config.json")).unwrap()).unwrap();
        let (tensors, width) = (read(&golden(case).join("model.safetensors")), config["hidden_size"].as_i64().unwrap());
        Self { place, tensors, width }
    }

    fn head(&self) -> Tensor {
        Tensor::arange(self.width, (Kind::Float, Device::Cpu)).view([1, -1]) - 3.5
    }

    fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn config(&self, change: impl Fn(&mut Value)) {
        let path = self.path("config.json");
        let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn load_for(&self, purpose: Use) -> Result<Model> {
        put(&self.path("model.safetensors"), &self.tensors);
        let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose, log_probs: true };
        adapter::load(&Origin::of(self.place.path(), None)?, options, None)
    }

    fn load(&self) -> Result<Model> {
        self.load_for(Use::Evaluate)
    }

    #[track_caller]
    fn refused(&self) -> Error {
        let error = self.load().err().expect("refused");
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        // Training is refused as well: it would start from something else.
        assert_eq!(self.load_for(Use::Train).err().map(|other| other.message), Some(error.message.clone()));
        error
    }
}

fn values(model: &Model) -> Tensors {
    model.named_values().into_iter().collect()
}

fn single(value: f64) -> Tensor {
    Tensor::from_slice(&[value as f32])
}

#[test]
fn a_reward_head_is_read_under_every_name_with_its_bias() {
    for (weight, bias, file) in [
        ("score.weight", "score.bias", "model.safetensors"),
        ("value_head.weight", "value_head.bias", "model.safetensors"),
        ("v_head.summary.weight", "v_head.summary.bias", "model.safetensors"),
        ("v_head.weight", "v_head.bias", "model.safetensors"),
        ("module.reward_head.weight", "module.reward_head.bias", "model.safetensors"),
        ("classifier.weight", "classifier.bias", "model.safetensors"),
        ("v_head.summary.weight", "v_head.summary.bias", "value_head.safetensors"),
        ("summary_of_mine.weight", "summary_of_mine.bias", "model.safetensors"),
    ] {
        for of_bias in [None, Some(0.75)] {
            let mut folder = Folder::of("llama-tied");
            if weight.starts_with("summary_of_mine") {
                folder.config(|config| config["value_head_prefix"] = json!("summary_of_mine"));
            }
            let mut head = Tensors::from([(weight.to_string(), folder.head().to_kind(Kind::BFloat16))]);
            head.extend(of_bias.map(|value| (bias.to_string(), single(value))));
            match file {
                "model.safetensors" => folder.tensors.extend(head),
                _ => put(&folder.path(file), &head),
            }
            for purpose in [Use::Evaluate, Use::Train] {
                let model = folder.load_for(purpose).unwrap();
                assert!(model.had_reward_head && values(&model)["score.weight"] == folder.head(), "{weight}");
                // Training leaves it out, and says so.
                let expected = of_bias.filter(|_| purpose == Use::Evaluate).unwrap_or(0.0);
                assert_eq!(model.reward_bias, expected, "{bias}");
            }
        }
    }
    // Control: without one there is none.
    let model = Folder::of("llama-tied").load().unwrap();
    assert!(!model.had_reward_head && model.reward_bias == 0.0);
    // What a merged model's config.json says of the bias that its head had.
    let folder = Folder::of("llama-tied");
    folder.config(|config| config["reward_bias"] = json!(-1.5));
    let head = folder.head();
    assert_eq!(folder.with("score.weight", head).load().unwrap().reward_bias, -1.5);
}

#[test]
fn a_head_that_is_not_read_is_refused_with_its_shapes() {
    let one = || Folder::of("llama-tied");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let width = one().width;
    for (folder, says) in [
        (one().with("score.weight", zeros(&[2, width])), format!("score.weight has shape [2, {width}]")),
        (one().with("v_head.summary.weight", zeros(&[1, width + 1])), format!("has shape [1, {}]", width + 1)),
        (one().with("score.weight", one().head()).with("score.bias", zeros(&[2])), "score.bias has shape [2]".into()),
        (one().with("score.weight", one().head()).with("v_head.weight", one().head()), "score, v_head".into()),
        (
            one().with("score.0.weight", zeros(&[width, width])).with("score.2.weight", one().head()),
            format!("score.0.weight [{width}, {width}], score.2.weight [1, {width}]"),
        ),
        (one().with("score.weight", one().head().to_kind(Kind::Int64)), "score.weight is I64".into()),
        (one().with("score.weight", one().head()).with("score.bias", single(f64::NAN)), "bias NaN".into()),
        // One under a name that nobody knows.
        (one().with("my_rm.weight", one().head()), "my_rm.weight".into()),
    ] {
        let error = folder.refused();
        assert!(error.message.contains(&says), "{error}");
    }
    let hint = one().with("my_rm.weight", one().head()).refused().hint.unwrap();
    assert!(hint.contains("\"value_head_prefix\": \"my_rm\""), "{hint}");
    // With a head beside it, it is something else, and reported only.
    one().with("my_rm.weight", one().head()).with("score.weight", one().head()).load().unwrap();
    // A head in a pickle, beside a model that would otherwise start from zero.
    let pickled = one();
    fs::write(pickled.path("value_head.bin"), "x").unwrap();
    assert!(pickled.refused().message.contains("value_head.bin"));
}

#[test]
fn names_of_wrappers_and_of_bare_backbones_are_the_same_model() {
    let bare = |backbone: &'static str| move |name: &str| name.strip_prefix(backbone).unwrap_or(name).to_string();
    let prefixed = |prefix: &'static str| move |name: &str| format!("{prefix}{name}");
    let compiled = |name: &str| name.replace("layers.1.", "layers.1._orig_mod.");
    type Rename = Box<dyn Fn(&str) -> String>;
    let renames: [(&str, Rename); 9] = [
        ("llama-tied", Box::new(bare("model."))),
        ("llama-untied", Box::new(bare("model."))),
        ("gemma2", Box::new(bare("model."))),
        ("gpt-neox-parallel", Box::new(bare("gpt_neox."))),
        ("llama-untied", Box::new(prefixed("module."))),
        ("phi", Box::new(prefixed("_orig_mod."))),
        ("gpt-neox-parallel", Box::new(prefixed("base_model.model."))),
        ("llama-untied", Box::new(prefixed("model."))),
        ("llama-tied", Box::new(compiled)),
    ];
    for (case, rename) in renames {
        let plain = Folder::of(case);
        let head = plain.head();
        let plain = plain.with("score.weight", head);
        let mut renamed = Folder::of(case);
        renamed.tensors = plain.tensors.iter().map(|(name, tensor)| (rename(name), tensor.shallow_clone())).collect();
        assert_ne!(renamed.tensors.keys().collect::<Vec<_>>(), plain.tensors.keys().collect::<Vec<_>>());
        assert_eq!(values(&renamed.load().unwrap()), values(&plain.load().unwrap()), "{case}");
    }
}

#[test]
fn two_tensors_of_one_name_and_adapters_that_are_not_merged_are_refused() {
    let folder = Folder::of("llama-tied");
    let twin = folder.tensors["model.norm.weight"].shallow_clone();
    let error = folder.with("norm.weight", twin).refused();
    assert!(error.message.contains("model.norm.weight is there twice"), "{error}");
    for name in ["self_attn.q_proj.lora_A.default.weight", "self_attn.q_proj.base_layer.weight"] {
        let name = format!("base_model.model.model.layers.0.{name}");
        let error = Folder::of("llama-tied").with(&name, single(1.0)).refused();
        assert!(
            error.message.contains("an unmerged adapter") && error.hint.unwrap().contains("merge_and_unload"),
            "{name}"
        );
    }
}

#[test]
fn quantized_weights_are_refused_with_the_signs_of_it() {
    const PROJECTION: &str = "model.layers.0.mlp.up_proj";
    let weight = format!("{PROJECTION}.weight");
    let codes = |kind: Kind| Tensor::ones([4], (kind, Device::Cpu));
    for (last, says) in [
        ("qweight", "GPTQ or AWQ"),
        ("g_idx", "GPTQ"),
        ("SCB", "int8"),
        ("weight.absmax", "4 bits"),
        ("weight_scale", "FP8"),
        ("weight_packed", "compressed-tensors"),
    ] {
        let name = format!("{PROJECTION}.{last}");
        let error = Folder::of("llama-tied").with(&name, codes(Kind::Uint8)).refused();
        let said = error.message.contains("quantized") && error.message.contains(&name) && error.message.contains(says);
        assert!(said, "{error}");
    }
    // The codes alone, under the weight's name and in its shape.
    for kind in [Kind::Int8, Kind::Uint8, Kind::Int] {
        let mut folder = Folder::of("llama-tied");
        let plain = folder.tensors[&weight].shallow_clone();
        folder.tensors.insert(weight.clone(), (plain * 100.0).to_kind(kind));
        let error = folder.refused();
        assert!(error.message.contains(&format!("{weight} is ")) && error.message.contains("quantized"), "{error}");
    }
    // The config alone, of whatever method.
    for said in [json!({"quant_method": "method-of-tomorrow"}), json!({"load_in_8bit": true})] {
        let folder = Folder::of("llama-tied");
        folder.config(|config| config["quantization_config"] = said.clone());
        let error = folder.refused();
        assert!(error.message.contains("quantization_config"), "{error}");
        assert_eq!(error.message.contains("method-of-tomorrow"), said.get("quant_method").is_some());
    }
    // Controls: null is none, and integers that are no weights are left alone.
    let folder = Folder::of("llama-tied");
    folder.config(|config| config["quantization_config"] = json!(null));
    folder.with("model.layers.0.self_attn.rotary_emb.inv_freq", codes(Kind::Int)).load().unwrap();
}

#[test]
fn an_index_names_whole_files_of_its_own_folder_each_tensor_once() {
    let folder = Folder::of("llama-tied");
    let outside = tempfile::tempdir().unwrap();
    put(&outside.path().join("model.safetensors"), &folder.tensors);
    put(&folder.path("one.safetensors"), &folder.tensors);
    let index = folder.path("model.safetensors.index.json");
    let paths = |text: String| {
        fs::write(&index, text).unwrap();
        weight_paths(folder.place.path())
    };
    let map = |file: &str| json!({"weight_map": {"model.norm.weight": file}}).to_string();
    assert_eq!(paths(map("one.safetensors")).unwrap(), [folder.path("one.safetensors")]);
    let absolute = outside.path().join("model.safetensors").display().to_string();
    let up = format!("../{}/model.safetensors", outside.path().file_name().unwrap().to_string_lossy());
    assert!(folder.path(&up).exists() && Path::new(&absolute).exists());
    for (text, says) in [
        (map(&absolute), "not a file of this folder"),
        (map(&up), "not a file of this folder"),
        (map("x/../one.safetensors"), "not a file of this folder"),
        (map(""), "not a file of this folder"),
        (map("two.safetensors"), "1 of its 1 files are missing: two.safetensors"),
        (r#"{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}"#.into(), "has a twice"),
        (r#"{"weight_map": ["a"]}"#.into(), "not a safetensors index"),
        ("{".into(), "not a safetensors index"),
    ] {
        let error = paths(text).unwrap_err();
        assert!(error.exit_code() == 2 && error.hint.is_some() && error.message.contains(says), "{error}");
    }
    // The hub's cache: links to files elsewhere, under names of the folder.
    std::os::unix::fs::symlink(outside.path().join("model.safetensors"), folder.path("link.safetensors")).unwrap();
    assert_eq!(paths(map("link.safetensors")).unwrap(), [folder.path("link.safetensors")]);
    // No file without end is read.
    fs::File::create(&index).unwrap().set_len(1 << 40).unwrap();
    assert!(weight_paths(folder.place.path()).unwrap_err().message.contains("larger than the limit"));
}

/// An adapter of the golden ones, to be changed, beside its base.
fn adapted(change: impl Fn(&mut Tensors, &mut Value)) -> (tempfile::TempDir, Origin) {
    let place = tempfile::tempdir().unwrap();
    let mut tensors = read(&golden("lora-mlp").join("adapter_model.safetensors"));
    let config = fs::read_to_string(golden("lora-mlp").join("adapter_config.json")).unwrap();
    let mut config = serde_json::from_str(&config).unwrap();
    change(&mut tensors, &mut config);
    put(&place.path().join("adapter_model.safetensors"), &tensors);
    fs::write(place.path().join("adapter_config.json"), config.to_string()).unwrap();
    let origin = Origin { base: golden("llama-tied"), adapter: Some(place.path().into()) };
    (place, origin)
}

fn load_adapter(origin: &Origin) -> Result<Model> {
    let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose: Use::Evaluate, log_probs: true };
    adapter::load(origin, options, None)
}

const SCORE: &str = "base_model.model.score.weight";

#[test]
fn an_adapter_brings_the_head_that_it_promises_under_any_name() {
    let expected = {
        let (_place, origin) = adapted(|_, _| {});
        values(&load_adapter(&origin).unwrap())
    };
    for (weight, bias) in [("v_head.summary.weight", "v_head.summary.bias"), ("base_model.model.classifier.weight", "")]
    {
        let (_place, origin) = adapted(|tensors, _| {
            let head = tensors.remove(SCORE).unwrap();
            tensors.insert(weight.into(), head);
            tensors.extend((!bias.is_empty()).then(|| (bias.into(), single(0.5))));
        });
        let model = load_adapter(&origin).unwrap();
        assert_eq!(values(&model), expected);
        assert_eq!(model.reward_bias, if bias.is_empty() { 0.0 } else { 0.5 });
        let changes = adapter::changes(origin.adapter.as_ref().unwrap(), &origin.base, &model.architecture).unwrap();
        assert_eq!(changes.head.unwrap().1, model.reward_bias);
    }
    // LLaMA-Factory's: beside the adapter.
    let head = read(&golden("lora-mlp").join("adapter_model.safetensors")).remove(SCORE).unwrap();
    let (place, origin) = adapted(|tensors, config| {
        tensors.remove(SCORE);
        config["modules_to_save"] = json!(null);
        config["task_type"] = json!("CAUSAL_LM");
    });
    let without = load_adapter(&origin).unwrap();
    assert!(!without.had_reward_head, "an adapter of a language model promises none");
    let beside = Tensors::from([("v_head.summary.weight".to_string(), head)]);
    put(&place.path().join("value_head.safetensors"), &beside);
    assert_eq!(values(&load_adapter(&origin).unwrap()), expected);

    for (modules, task) in [(json!(["score"]), "CAUSAL_LM"), (json!(["v_head"]), "CAUSAL_LM"), (json!(null), "SEQ_CLS")]
    {
        let (_place, origin) = adapted(|tensors, config| {
            tensors.remove(SCORE);
            config["modules_to_save"] = modules.clone();
            config["task_type"] = json!(task);
        });
        let error = load_adapter(&origin).err().unwrap();
        assert!(error.message.contains("the reward head is missing"), "{error}");
        assert!(error.exit_code() == 2 && error.hint.unwrap().contains("value_head.safetensors"));
    }
}

#[test]
fn an_adapter_with_quantized_or_repeated_tensors_is_refused() {
    let (_place, origin) = adapted(|tensors, _| {
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("lora_A")) {
            assert!(name.ends_with("weight"));
            *tensor = tensor.to_kind(Kind::Int8);
        }
    });
    assert!(load_adapter(&origin).err().unwrap().message.contains("quantized"));
    let (_place, origin) = adapted(|tensors, _| {
        let head = tensors[SCORE].shallow_clone();
        tensors.insert("score.weight".into(), head);
    });
    assert!(load_adapter(&origin).err().unwrap().message.contains("score.weight is there twice"));
}

#[test]
fn a_tied_head_that_differs_from_the_embedding_counts() {
    let mut held = families::tensors("llama-tied");
    let embedding = held["model.embed_tokens.weight"].copy();
    for (head, own) in [(embedding.copy(), false), (embedding.flip([0]), true)] {
        held.insert("lm_head.weight".into(), head.copy());
        let model = families::load(families::written("llama-tied", &held, 1).path(), true).unwrap();
        assert_eq!((model.architecture.tied, model.segment(Part::LanguageModelHead).is_some()), (!own, own));
        let values = families::values(&model);
        assert_eq!(values["model.embed_tokens.weight"], embedding);
        assert!(!own || values["lm_head.weight"] == head);
    }
}
