//! Promises of the safetensors files and of checkpoints.

use haf_dist::checkpoint::{self, AsTrained, Best, ChatTemplates, MetricsMark, Planned, Snapshot, TrainState};
use haf_dist::config::Config;
use haf_dist::data::tokenize::Encoder;
use haf_dist::error::Error;
use haf_dist::safetensors_io::{Entry, Mapped, write};
use haf_dist::statistics::Spread;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const SOURCE_CONFIG: &str = r#"{ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8,
    "eos_token_id": [2, 3], "pad_token_id": 2, "num_labels": 3, "rms_norm_eps": 1e-05, "rope_theta": 100000.1,
    "tie_word_embeddings": true, "torch_dtype": "float32" }"#;

const TOKENIZER: &str = r#"{ "version": "1.0", "model": { "type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3},
    "merges": [] }, "added_tokens": [
    {"id": 4, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
    {"id": 5, "content": "<|unused|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}
    ] }"#;

fn config() -> Config {
    let text = "[model]\npath = 'm'\n[data]\ntrain = [{ path = 'a.jsonl', weight = 0.5 }]\n[output]\ndir = 'r'\n";
    toml::from_str(text).unwrap()
}

fn model_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    put("config.json", SOURCE_CONFIG);
    put("tokenizer.json", TOKENIZER);
    put("tokenizer_config.json", r#"{"model_max_length": 8192, "pad_token": "<|im_end|>", "eos_token": "<|im_end|>"}"#);
    put("chat_template.jinja", "{% for message in messages %}{{ message.content }}<|im_end|>\n{% endfor %}");
    put("model.safetensors", "must not travel");
    dir
}

fn state(step: usize) -> TrainState {
    let best = Best { step: 1, accuracy: 0.1 + 0.2, loss: 2.0 / 3.0 };
    TrainState {
        step,
        world_size: 2,
        threads: 1,
        data_key: "k".into(),
        model_key: "m".into(),
        best: Some(best),
        updates_skipped: 1,
        metrics: Some(MetricsMark { lines: 3, digest: "00000000000000ff".into() }),
    }
}

fn save(run: &Path, step: usize) -> haf_dist::error::Result<PathBuf> {
    save_with(run, step, 5, model_dir().path())
}

fn save_with(run: &Path, step: usize, pad_token_id: u32, model_dir: &Path) -> haf_dist::error::Result<PathBuf> {
    let numbers = |count: i64| Tensor::arange(count, (Kind::Float, tch::Device::Cpu)) / 3.0;
    let name = || "model.embed_tokens.weight".to_string();
    let (state, config) = (state(step), config());
    let (master, moment) = (numbers(12).view([6, 2]), numbers(12));
    let (weight, head) = (master.to_kind(Kind::BFloat16), numbers(2).view([1, 2]));
    let encoder = Encoder::open(model_dir, AsTrained::of(&config).rules(), 6).unwrap();
    let templates = ChatTemplates::of(model_dir, &encoder).unwrap();
    // No letter is a token of this tokenizer: every conversation is left out.
    let self_test = Some(Planned::of(&encoder).rewarded(&[], "bf16", Spread::of(&[1.0, 3.0])));
    checkpoint::save(
        run,
        &Snapshot {
            step,
            model_dir,
            adapter: None,
            weights: vec![Entry::of(&name(), &weight), Entry::of("score.weight", &head)],
            masters: vec![Entry::of(&name(), &master)],
            moments: vec![
                Entry::of(&format!("exp_avg.{}", name()), &moment),
                Entry::of(&format!("exp_avg_sq.{}", name()), &moment),
            ],
            architecture: "LlamaForSequenceClassification",
            pad_token_id,
            templates: &templates,
            self_test,
            fitted: None,
            state: &state,
            config: &config,
        },
    )
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn same_bits(left: &Tensor, right: &Tensor) -> bool {
    left.kind() == right.kind()
        && left.size() == right.size()
        && *haf_dist::tensor::bytes(left).unwrap() == *haf_dist::tensor::bytes(right).unwrap()
}

#[test]
fn tensors_of_every_kind_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.safetensors");
    let source = Tensor::from_slice(&[0.1f32, -2.5, f32::NAN, f32::INFINITY, 3e-40, 7.0]).view([2, 3]);
    let kinds = [Kind::Uint8, Kind::BFloat16, Kind::Half, Kind::Float, Kind::Double, Kind::Int64, Kind::Int];
    let finite = Tensor::from_slice(&[0i64, 1, 2, 100, 5, 6]).view([2, 3]);
    let mut tensors: Vec<(String, Tensor)> = vec![("nan".into(), source.to_kind(Kind::BFloat16))];
    tensors.extend(kinds.map(|kind| (format!("{kind:?}"), finite.to_kind(kind))));
    tensors.push(("scalar".into(), Tensor::from(1.5f32)));
    tensors.push(("empty".into(), Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu))));
    let transposed = source.transpose(0, 1);
    let mut borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    borrowed.push(("transposed".into(), &transposed));
    let entries = || borrowed.iter().map(|(name, tensor)| Entry::of(name, tensor)).collect::<Vec<_>>();
    write(&path, &entries(), &BTreeMap::from([("format".into(), "pt".into())])).unwrap();

    let file = Mapped::open(&path).unwrap();
    assert_eq!(file.names().len(), borrowed.len());
    for (name, tensor) in &borrowed {
        assert!(same_bits(&file.read(name).unwrap(), &tensor.contiguous()), "{name}");
        assert_eq!(file.shape(name).unwrap(), tensor.size(), "{name}");
    }
    // The library's own reader agrees about the format.
    let bytes = fs::read(&path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");

    assert_eq!(file.read("nothing").unwrap_err().exit_code(), 2);
    let twice = [Entry::of("one", &transposed), Entry::of("one", &transposed)];
    assert!(write(&dir.path().join("twice"), &twice, &BTreeMap::new()).is_err());
    let other = Entry { shape: vec![6], ..Entry::of("one", &transposed) };
    assert!(write(&dir.path().join("other"), &[other], &BTreeMap::new()).is_err(), "values unlike their entry");
    assert!(write(&path, &entries(), &BTreeMap::new()).is_err(), "an existing file is never overwritten");
}

/// A safetensors file with this header and this many bytes of data.
fn file_with(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn a_damaged_safetensors_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.safetensors");
    let open = |bytes: &[u8]| -> Result<Mapped, Error> {
        fs::write(&path, bytes).unwrap();
        Mapped::open(&path)
    };
    let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(open(&file_with(good, 8)).is_ok());

    let whole = file_with(good, 8);
    for length in 0..whole.len() {
        let error = open(&whole[..length]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "cut to {length} bytes");
        assert!(error.message.contains("bad.safetensors") && error.hint.is_some(), "{error}");
    }
    let entry = |entry: &str| file_with(&format!(r#"{{"a":{entry}}}"#), 8);
    for (bytes, says) in [
        (file_with("not json", 8), "JSON"),
        (file_with(good, 9), "not fully covered"),
        (file_with("\u{e9}", 0).iter().map(|&byte| if byte == 0xc3 { 0xff } else { byte }).collect(), "UTF-8"),
        (entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), "shape"),
        (entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#), "offset"),
        (entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), "offset"),
        (entry(r#"{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}"#), "overflow"),
        (entry(r#"{"dtype":"X1","shape":[2],"data_offsets":[0,8]}"#), "X1"),
        (u64::MAX.to_le_bytes().to_vec(), "header should have 18446744073709551615 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "Git LFS pointer"),
    ] {
        let error = open(&bytes).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message.contains(says), "{says:?} was expected in: {error}");
    }
    let unsupported = open(&entry(r#"{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]}"#)).unwrap();
    assert!(unsupported.read("a").unwrap_err().message.contains("BOOL"));
    assert_eq!(Mapped::open(dir.path()).unwrap_err().exit_code(), 2);
    assert_eq!(Mapped::open(&dir.path().join("none")).unwrap_err().exit_code(), 2);
}

#[test]
fn a_checkpoint_is_a_hugging_face_folder_with_the_trainer_s_own_beside_it() {
    let run = tempfile::tempdir().unwrap();
    let step = save(run.path(), 7).unwrap();
    assert_eq!(step, run.path().join("step-7"));
    let template = ["additional_chat_templates", "chat_template.jinja"];
    let model = ["config.json", "haf_dist.json", "model.safetensors", "self-test.json"];
    let tokenizer = ["tokenizer.json", "tokenizer_config.json", "trainer"];
    assert_eq!(names(&step), [&template[..], &model, &tokenizer].concat());
    assert_eq!(names(&step.join("additional_chat_templates")), ["original.jinja"]);
    let inside = ["config.toml", "files.json", "masters.safetensors", "moments.safetensors", "state.json"];
    assert_eq!(names(&step.join("trainer")), inside);

    let mut expected: Value = serde_json::from_str(SOURCE_CONFIG).unwrap();
    let object = expected.as_object_mut().unwrap();
    object.shift_remove("num_labels");
    object.insert("architectures".into(), json!(["LlamaForSequenceClassification"]));
    object.insert("pad_token_id".into(), json!(5));
    object.extend([("mean".into(), json!(2.0)), ("std".into(), json!(f64::from(f32::sqrt(2.0))))]);
    object.insert("id2label".into(), json!({"0": "reward"}));
    object.insert("label2id".into(), json!({"reward": 0}));
    object.insert("problem_type".into(), json!("regression"));
    object.insert("dtype".into(), json!("bfloat16"));
    object.insert("torch_dtype".into(), json!("bfloat16"));
    assert_eq!(read_json(step.join("config.json")), expected);
    // Padded by its own tokenizer, a batch is padded with the token that Transformers skips.
    assert_eq!(
        read_json(step.join("tokenizer_config.json")),
        json!({"model_max_length": 8192, "pad_token": "<|unused|>", "eos_token": "<|im_end|>"})
    );

    let model = Mapped::open(&step.join(checkpoint::MODEL)).unwrap();
    assert_eq!(model.kind("model.embed_tokens.weight").unwrap(), Kind::BFloat16);
    assert_eq!(model.kind("score.weight").unwrap(), Kind::Float);
    assert_eq!(checkpoint::load_state(&step).unwrap(), state(7));
    let text = fs::read_to_string(step.join(checkpoint::CONFIG)).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), config());
}

#[test]
fn a_pad_token_that_ends_sequences_is_refused_and_nothing_is_left() {
    let (run, model) = (tempfile::tempdir().unwrap(), model_dir());
    assert!(save_with(run.path(), 1, 3, model.path()).unwrap_err().message.contains("end of sequence"));
    assert!(names(run.path()).is_empty());
    assert!(save_with(run.path(), 1, 5, model.path()).is_ok());
}

#[test]
fn the_pad_token_is_special_where_possible_never_used_and_never_an_end() {
    let occurs = [false, true, false, false, true, false];
    let choose =
        |special: &[u32], ends: &[u32]| checkpoint::choose_pad_token(&occurs, ends, |id| special.contains(&id));
    assert_eq!(choose(&[0, 1, 2, 3], &[3]), Some(2));
    assert_eq!(choose(&[1], &[5]), Some(3));
    assert_eq!(checkpoint::choose_pad_token(&[true, false], &[1], |_| true), None);
}

#[test]
fn a_checkpoint_is_never_overwritten() {
    let run = tempfile::tempdir().unwrap();
    let step = save(run.path(), 1).unwrap();
    let before = fs::read(step.join("trainer/files.json")).unwrap();
    assert!(save(run.path(), 1).unwrap_err().message.contains("never overwritten"));
    assert_eq!(fs::read(step.join("trainer/files.json")).unwrap(), before);
    assert_eq!(names(run.path()), ["step-1"]);
}

#[test]
fn only_a_whole_checkpoint_is_found_whatever_a_kill_or_a_disk_did_to_newer_ones() {
    let run = tempfile::tempdir().unwrap();
    assert_eq!(checkpoint::newest(run.path()).unwrap(), None);
    let old = save(run.path(), 9).unwrap();
    let new = save(run.path(), 10).unwrap();
    let newest = || checkpoint::newest(run.path()).unwrap().unwrap();
    assert_eq!(newest(), new, "step-10 is newer than step-9");

    let folders = ["additional_chat_templates", "trainer"];
    let mut files: Vec<String> = names(&new).into_iter().filter(|name| !folders.contains(&&name[..])).collect();
    for folder in folders {
        files.extend(names(&new.join(folder)).iter().map(|name| format!("{folder}/{name}")));
    }
    assert_eq!(files.len(), 13);
    for name in files {
        let path = new.join(&name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(newest(), old, "{name} cut");
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 64;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(newest(), old, "a bit of {name} flipped");
        fs::remove_file(&path).unwrap();
        assert_eq!(newest(), old, "{name} gone");
        fs::write(&path, &whole).unwrap();
        assert_eq!(newest(), new, "{name} back");
    }
    // Whole inside, but under a name that a kill leaves, or under another step's.
    fs::rename(&new, run.path().join("step-10.partial")).unwrap();
    assert_eq!(newest(), old);
    fs::rename(run.path().join("step-10.partial"), run.path().join("step-11")).unwrap();
    assert_eq!(newest(), old);
}

#[test]
fn a_save_removes_what_killed_saves_left_and_nothing_else() {
    let run = tempfile::tempdir().unwrap();
    for name in ["step-3.partial/trainer", "step-5.partial", "step-x.partial", "notes.partial", "step-03.partial"] {
        fs::create_dir_all(run.path().join(name)).unwrap();
    }
    fs::write(run.path().join("step-4.partial"), "a file of the user's").unwrap();
    save(run.path(), 5).unwrap();
    assert_eq!(names(run.path()), ["notes.partial", "step-03.partial", "step-4.partial", "step-5", "step-x.partial"]);
}

#[test]
fn a_damaged_checkpoint_is_set_aside_so_that_the_resumed_run_can_save_again() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), 1).unwrap();
    for _ in 0..2 {
        fs::remove_file(save(run.path(), 2).unwrap().join("model.safetensors")).unwrap();
        assert_eq!(checkpoint::set_aside(run.path(), 1).unwrap(), [2]);
    }
    save(run.path(), 2).unwrap();
    assert_eq!(names(run.path()), ["step-1", "step-2", "step-2.damaged", "step-2.damaged-2"]);
}

#[test]
fn the_newest_and_the_best_stay_and_only_our_own_folders_go() {
    let run = tempfile::tempdir().unwrap();
    for step in [2, 4, 6, 8, 10] {
        save(run.path(), step).unwrap();
    }
    fs::create_dir(run.path().join("step-1")).unwrap();
    fs::create_dir(run.path().join("step-99")).unwrap();
    fs::write(run.path().join("metrics.jsonl"), "").unwrap();
    assert_eq!(checkpoint::retain(run.path(), 2, Some(4)).unwrap(), [2, 6]);
    assert_eq!(names(run.path()), ["metrics.jsonl", "step-1", "step-10", "step-4", "step-8", "step-99"]);
    assert_eq!(checkpoint::retain(run.path(), 0, None).unwrap(), [4, 8], "the newest stays");
}

#[test]
fn the_best_has_the_higher_accuracy_then_the_lower_loss_and_nan_never_wins() {
    let best = |accuracy, loss| Best { step: 1, accuracy, loss };
    assert!(best(0.7, 0.9).beats(&best(0.6, 0.1)));
    assert!(best(0.7, 0.1).beats(&best(0.7, 0.2)));
    assert!(!best(0.7, 0.2).beats(&best(0.7, 0.2)));
    assert!(!best(0.7, f64::NAN).beats(&best(0.7, 9.0)));
    assert!(best(0.1, 1.0).beats(&best(f64::NAN, f64::NAN)));
}

#[test]
fn a_state_with_nan_comes_back_and_one_of_another_format_is_refused() {
    let (run, model) = (tempfile::tempdir().unwrap(), model_dir());
    let dir = save_with(run.path(), 1, 5, model.path()).unwrap();
    let path = dir.join(checkpoint::STATE);
    let text = fs::read_to_string(&path).unwrap();
    let loss = format!("{}", 2.0 / 3.0);
    fs::write(&path, text.replace(&loss, "null")).unwrap();
    assert!(checkpoint::load_state(&dir).unwrap().best.unwrap().loss.is_nan());
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    assert!(checkpoint::load_state(&dir).unwrap_err().message.contains("format 2"));
}

#[test]
fn the_disk_is_checked_against_the_size_that_a_checkpoint_really_has() {
    let (run, model) = (tempfile::tempdir().unwrap(), model_dir());
    // Large enough for headers not to matter.
    fs::write(model.path().join("tokenizer.json"), TOKENIZER.to_owned() + &" ".repeat(1_000_000)).unwrap();
    let dir = save_with(run.path(), 1, 5, model.path()).unwrap();
    let size = |dir: &Path| -> u64 {
        let files = fs::read_dir(dir).unwrap().map(|item| item.unwrap().metadata().unwrap());
        files.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len()).sum()
    };
    let real = size(&dir) + size(&dir.join("trainer"));
    let expected = checkpoint::expected_bytes(model.path(), (14, Kind::BFloat16), 12);
    assert!(real.abs_diff(expected) < 8_000, "{real} against {expected}");

    let not_yet = run.path().join("not/yet");
    checkpoint::check_disk(&not_yet, 1, 4).unwrap();
    let error = checkpoint::check_disk(&not_yet, 1 << 60, 4).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message.contains("4 checkpoints") && error.hint.unwrap().contains("keep"));
    assert!(!not_yet.exists());
}
