//! A folder from elsewhere: none of its files is read beyond its limit, and none of them leads out of the folder.
//!
//! Not here: weights and their index (`foreign_models.rs`), files that were changed (`changed.rs`).

use crate::runs::refused::{Case, check};
use crate::tiny::Workspace;
use haf_dist::checkpoint::{self, AsTrained, Changed, FileCheck, SelfTest};
use haf_dist::config::TemplateKind;
use haf_dist::data::template::Template;
use haf_dist::error::Result;
use haf_dist::model::architecture::Architecture;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that no file but one of weights may have; on the disk they take none.
const HUGE: u64 = 3 << 30;

/// A file of the folder, and what reads it.
type Read = (&'static str, fn(&Path) -> Result<()>);

const READ: [Read; 14] = [
    ("chat_template.jinja", |folder| Template::open(TemplateKind::Chat, folder).map(drop)),
    ("additional_chat_templates/tool.jinja", |folder| checkpoint::as_others_read(folder).map(drop)),
    ("additional_chat_templates/tool.jinja", |folder| checkpoint::copy_named_templates(folder, &folder.join("copy"))),
    ("tokenizer_config.json", |folder| Template::open(TemplateKind::Plain, folder).map(drop)),
    ("tokenizer_config.json", |folder| checkpoint::pad_token(folder).map(drop)),
    ("special_tokens_map.json", |folder| Template::open(TemplateKind::Plain, folder).map(drop)),
    ("tokenizer.json", |folder| checkpoint::special_tokens(folder).map(drop)),
    ("config.json", |folder| checkpoint::end_tokens(folder).map(drop)),
    ("config.json", |folder| Architecture::open(folder).map(drop)),
    ("self-test.json", |folder| SelfTest::read(folder).map(drop)),
    ("haf_dist.json", |folder| AsTrained::read(folder).map(drop)),
    ("trainer/state.json", |folder| checkpoint::load_state(folder).map(drop)),
    ("trainer/config.toml", |folder| AsTrained::of_checkpoint(folder).map(drop)),
    ("trainer/files.json", |folder| FileCheck::begin([folder], Changed::Refused).map(drop)),
];

fn make_huge(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path).unwrap().set_len(HUGE).unwrap();
}

#[test]
fn a_file_without_end_is_refused_by_name_before_it_is_read() {
    for (name, read) in READ {
        let workspace = Workspace::new();
        let folder = workspace.path("model");
        workspace.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
        make_huge(&folder.join(name));
        let started = Instant::now();
        let error = read(&folder).expect_err(name);
        assert!(started.elapsed() < Duration::from_secs(1), "{name}: {:?}", started.elapsed());
        assert!(error.message.contains(name) && error.message.contains("larger than the limit"), "{name}: {error}");
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{name}: {error}");
    }
}

#[test]
fn neither_a_large_file_nor_many_templates_are_copied_into_checkpoints() {
    let workspace = Workspace::new();
    make_huge(&workspace.path("model/LICENSE"));
    let outcome = workspace.train(1, &[]);
    assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("model/LICENSE: it is larger than the limit"), "{}", outcome.stderr);
    fs::remove_file(workspace.path("model/LICENSE")).unwrap();
    fs::create_dir(workspace.path("model/additional_chat_templates")).unwrap();
    for number in 0..101 {
        workspace.write(&format!("model/additional_chat_templates/{number}.jinja"), "{{ messages }}");
    }
    let error = checkpoint::copy_named_templates(&workspace.path("model"), &workspace.path("")).unwrap_err();
    assert!(error.message.contains("more than 100 chat templates") && error.hint.is_some(), "{error}");
}

/// A copy of a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => fs::write(to.join(name), fs::read(&path).unwrap()).unwrap(),
        }
    }
}

#[test]
fn a_list_of_files_names_none_outside_of_its_folder() {
    let workspace = Workspace::trained(1);
    let list = String::from_utf8(workspace.read("run/step-6/trainer/files.json")).unwrap();
    let absolute = workspace.path("plain.jsonl").display().to_string();
    for name in ["../../plain.jsonl", "trainer/../../../plain.jsonl", "./config.json", "", &absolute] {
        let entry = format!("{{\"{name}\": {{\"bytes\": 1, \"xxh3\": \"0\"}},");
        workspace.write("run/step-6/trainer/files.json", &list.replacen('{', &entry, 1));
        let says = ["run/step-6/trainer/files.json: ", &format!("{name:?} is not a file of this folder")];
        for command in [["score", "--checkpoint"], ["eval", "--checkpoint"]] {
            let arguments = [&command[..], &["run/step-6", "--data", "test.jsonl"]].concat();
            check(&workspace, &[1], &Case { name, arguments, says: &says });
        }
        // Nor is it a checkpoint to go on from.
        assert_eq!(checkpoint::newest(&workspace.path("run")).unwrap(), Some(workspace.path("run/step-3")), "{name}");
    }
}

#[test]
fn a_config_from_elsewhere_does_not_say_where_caches_are_written() {
    let workspace = Workspace::new();
    workspace.train(1, &["data.cache_dir=own"]).succeeded();
    let left = workspace.path("own/.unfinished-abc123");
    let caches = |folder: &str| fs::read_dir(workspace.path(folder)).map_or(0, Iterator::count);
    let eval = |checkpoint: &str, row: &str| {
        workspace.write("new.jsonl", &format!("{{\"prompt\": \"{row}\", \"chosen\": \"a\", \"rejected\": \"b\"}}\n"));
        let arguments = ["eval", "--checkpoint", checkpoint, "--data", "new.jsonl", "--allow-changed"];
        workspace.run(1, &arguments).succeeded();
    };
    fs::write(&left, "somebody's").unwrap();
    let before = caches("own");
    // Copied alone; and with a config that names the folder which it was copied to.
    for (number, dir) in ["run", "copied"].iter().enumerate() {
        copy(&workspace.path("run/step-6"), &workspace.path("copied/step-6"));
        let config = String::from_utf8(workspace.read("copied/step-6/trainer/config.toml")).unwrap();
        assert!(config.contains("dir = \"run\"") && config.contains("cache_dir = \"own\""), "{config}");
        let config = config.replace("dir = \"run\"", &format!("dir = \"{dir}\""));
        workspace.write("copied/step-6/trainer/config.toml", &config);
        let there = caches("cache/haf-dist");
        eval("copied/step-6", &format!("copy {number}"));
        assert!(caches("own") == before && left.exists(), "{dir}: the copy decides where caches are");
        assert!(caches("cache/haf-dist") > there, "{dir}");
    }
    // The run's own checkpoint, also through the link.
    for (number, checkpoint) in ["run/step-6", "run/best"].iter().enumerate() {
        let (there, own) = (caches("cache/haf-dist"), caches("own"));
        eval(checkpoint, &format!("own {number}"));
        assert!(!left.exists() && caches("cache/haf-dist") == there, "{checkpoint}");
        assert!(number == 0 || caches("own") > own, "{checkpoint}");
    }
}
