//! Promise: `hf://` paths are fetched once, through the hub's protocol, into the hub's own cache; without a network the
//! cache is enough, and if it lacks a file the error says what to do.

use haf_dist::config::HubPath;
use haf_dist::error::{Error, Kind, Result};
use haf_dist::hub::{Hub, RepositoryKind, Snapshot, name_of};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on this machine with one repository: a few files at one commit. What it was asked for is written down.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (noted, stream) = (noted.clone(), stream.unwrap());
                std::thread::spawn(move || answer(stream, files, &noted));
            }
        });
        Self { endpoint, asked }
    }

    /// What it was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// One request of a connection: a list of files, or a file or a part of it.
fn answer(mut stream: TcpStream, files: &[(&str, &str)], asked: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::result::Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned));
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());

    let (status, extra, body) = if path.contains("/secret/") {
        ("401 Unauthorized", String::new(), String::new())
    } else if path.starts_with("/api/") && (path.ends_with("/revision/main") || path.ends_with(COMMIT)) {
        let siblings: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        ("200 OK", String::new(), serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string())
    } else if let Some((name, text)) =
        files.iter().find(|(name, _)| path.ends_with(&format!("/resolve/{COMMIT}/{name}")))
    {
        let range = header("range: bytes=").unwrap_or_default();
        let (from, to) = range.split_once('-').unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(text.len(), |to: usize| to + 1);
        let extra = format!(
            "ETag: \"etag-of-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
            name.replace('/', "-"),
            to - 1,
            text.len()
        );
        ("206 Partial Content", extra, text[from..to].to_owned())
    } else {
        ("404 Not Found", String::new(), String::new())
    };
    let head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

const MODEL: &[(&str, &str)] = &[
    ("README.md", "#"),
    ("config.json", "{}"),
    ("haf_dist.json", "{\"template\": \"hh\"}"),
    ("model-00001-of-00002.safetensors", "one"),
    ("model-00002-of-00002.safetensors", "two"),
    ("model.safetensors.index.json", "{\"weight_map\": {}}"),
    ("onnx/model.onnx", "x"),
    ("pytorch_model.bin", "pickle"),
    ("tokenizer.json", "{\"version\": \"1.0\"}"),
];
const ADAPTER: &[(&str, &str)] = &[
    ("README.md", "#"),
    ("adapter_config.json", "{}"),
    ("adapter_model.safetensors", "a"),
    ("optimizer.pt", "pickle"),
    ("tokenizer.json", "{\"version\": \"1.0\"}"),
];
const DATA: &[(&str, &str)] = &[
    ("README.md", "#"),
    ("data/test-00000-of-00001-0123456789abcdef.parquet", "t"),
    ("data/train-00000-of-00002.parquet", "first"),
    ("data/train-00001-of-00002.parquet", "second"),
    ("helpful-base/train.jsonl.gz", "h"),
    ("new/train/0000.parquet", "n"),
];

fn path(text: &str) -> HubPath {
    HubPath::parse(Path::new(text)).unwrap().unwrap()
}

fn fetch(hub: &Hub, text: &str, kind: RepositoryKind) -> Result<(Snapshot, Vec<PathBuf>)> {
    let snapshot = hub.look_up(&path(text), kind)?;
    let files = hub.fetch(&snapshot)?;
    Ok((snapshot, files))
}

fn model(hub: &Hub) -> Result<(Snapshot, Vec<PathBuf>)> {
    fetch(hub, "hf://owner/name", RepositoryKind::Model)
}

fn split(hub: &Hub, part: &str) -> Result<Vec<String>> {
    let (_, files) = fetch(hub, &format!("hf://owner/name{part}"), RepositoryKind::Dataset)?;
    Ok(files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect())
}

/// An endpoint where nothing listens.
fn nowhere() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

fn told(error: &Error, kind: Kind, message: &str, hint: &str) {
    let (has_message, has_hint) = (error.message.contains(message), error.hint.as_deref().unwrap_or("").contains(hint));
    assert!(error.kind == kind && has_message && has_hint, "{error}");
}

#[test]
fn a_models_files_are_fetched_once_and_found_again_by_commit_or_branch_without_a_network() {
    let (server, cache) = (Server::start(MODEL), tempfile::tempdir().unwrap());
    let hub = Hub::new(cache.path(), &server.endpoint);
    let (snapshot, files) = model(&hub).unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    assert!(files.iter().all(|file| file.parent() == Some(&hub.folder(&snapshot))));
    let named = |file: &str| std::fs::read_to_string(hub.folder(&snapshot).join(file));
    assert_eq!(named("model-00002-of-00002.safetensors").unwrap(), "two");
    assert_eq!(named("tokenizer.json").unwrap(), "{\"version\": \"1.0\"}");
    assert_eq!(named("haf_dist.json").unwrap(), "{\"template\": \"hh\"}", "how a model of ours was trained");
    for unread in ["README.md", "pytorch_model.bin", "onnx/model.onnx"] {
        assert!(named(unread).is_err(), "{unread} is not needed");
    }
    assert!(server.asked().len() > 5);

    model(&hub).unwrap();
    assert_eq!(server.asked(), ["/api/models/owner/name/revision/main"], "only the commit is asked for again");
    let offline = hub.clone().offline();
    assert_eq!(model(&offline).unwrap().1, files);
    let by_commit = format!("hf://owner/name@{COMMIT}");
    assert_eq!(fetch(&offline, &by_commit, RepositoryKind::Model).unwrap().1, files);
    assert_eq!(model(&Hub::new(cache.path(), &nowhere())).unwrap().1, files, "the cache stands in for a lost network");
    assert_eq!(server.asked(), Vec::<String>::new());
}

/// Ranks of a second node, or two runs: without turns the hub's client would give up at its lock after some seconds.
#[test]
fn a_process_waits_while_another_one_fetches_the_same_files_and_asks_for_none_of_them_again() {
    let (server, cache, other) = (Server::start(MODEL), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::new(cache.path(), &server.endpoint);
    let snapshot = hub.look_up(&path("hf://owner/name"), RepositoryKind::Model).unwrap();
    let locks = cache.path().join(".locks/models--owner--name");
    std::fs::create_dir_all(&locks).unwrap();
    let turn = std::fs::File::create(locks.join("haf-dist--config.json.lock")).unwrap();
    turn.lock().unwrap();
    server.asked();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| hub.fetch(&snapshot));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished());
        assert_eq!(server.asked(), Vec::<String>::new());
        let fetched = Hub::new(other.path(), &server.endpoint);
        fetched.fetch(&snapshot).unwrap();
        server.asked();
        std::fs::create_dir_all(hub.folder(&snapshot)).unwrap();
        for file in &snapshot.files {
            std::fs::copy(fetched.folder(&snapshot).join(file), hub.folder(&snapshot).join(file)).unwrap();
        }
        drop(turn);
        assert_eq!(waiting.join().unwrap().unwrap().len(), snapshot.files.len());
    });
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn a_split_is_named_as_the_hubs_data_sets_name_it() {
    let (server, cache) = (Server::start(DATA), tempfile::tempdir().unwrap());
    let hub = Hub::new(cache.path(), &server.endpoint);
    for (part, expected) in [
        ("/train", &["first", "second"][..]),
        ("/test", &["t"]),
        ("/helpful-base/train", &["h"]),
        ("/new/train", &["n"]),
        ("/helpful-base/train.jsonl.gz", &["h"]),
        ("@main/data/train-00001-of-00002.parquet", &["second"]),
    ] {
        assert_eq!(split(&hub, part).unwrap(), expected, "{part}");
        assert_eq!(split(&hub.clone().offline(), part).unwrap(), expected, "{part}");
    }
    let error = split(&hub, "/dev").unwrap_err();
    told(
        &error,
        Kind::Input,
        "owner/name@main: there is no file or split \"dev\"",
        "helpful-base/train, new/train, test",
    );
    told(&split(&hub, "").unwrap_err(), Kind::Input, "no split is named", "its splits are");
}

#[test]
fn a_cache_filled_in_part_is_not_taken_for_the_whole() {
    let (server, cache) = (Server::start(DATA), tempfile::tempdir().unwrap());
    let hub = Hub::new(cache.path(), &server.endpoint);
    split(&hub, "/data/train-00001-of-00002.parquet").unwrap();
    let error = split(&hub.clone().offline(), "/train").unwrap_err();
    told(&error, Kind::Input, "shard 0 of 2 is missing", "incomplete");
    assert_eq!(split(&hub, "/train").unwrap(), ["first", "second"]);
    // A file that was lost since.
    let snapshot = hub.look_up(&path("hf://owner/name/test"), RepositoryKind::Dataset).unwrap();
    told(&hub.clone().offline().fetch(&snapshot).unwrap_err(), Kind::Input, "is not in the cache", "HF_HUB_OFFLINE");
}

#[test]
fn files_missing_from_the_hub_or_the_cache_are_reported_with_advice() {
    let (server, cache) = (Server::start(DATA), tempfile::tempdir().unwrap());
    let hub = Hub::new(cache.path(), &server.endpoint);
    told(&model(&hub).unwrap_err(), Kind::Input, "there is no config.json", "Hugging Face folder");
    let error = fetch(&hub, "hf://secret/name", RepositoryKind::Model).unwrap_err();
    told(&error, Kind::Input, "answers 401 for the model secret/name", "HF_TOKEN");
    let error = fetch(&hub, "hf://owner/name@other", RepositoryKind::Dataset).unwrap_err();
    told(&error, Kind::Input, "answers 404 for the data set owner/name at other", "revision");
    let error = model(&hub.clone().offline()).unwrap_err();
    told(&error, Kind::Input, "the model owner/name at main is not in the cache", "HF_HUB_OFFLINE is set");
    let error = model(&Hub::new(cache.path(), &nowhere())).unwrap_err();
    told(
        &error,
        Kind::Runtime,
        "cannot fetch the model owner/name at main from http://127.0.0.1",
        "is there a network?",
    );
}

/// One that answers as far as `answers` goes and then keeps the connection open.
fn silent(answers: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming() {
            open.push(stream.unwrap());
            open.last_mut().unwrap().write_all(answers.as_bytes()).unwrap();
        }
    });
    endpoint
}

#[test]
fn a_hub_that_falls_silent_is_given_up() {
    for answers in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"sha\":"] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(cache.path(), &silent(answers)).with_patience(Duration::from_millis(300));
        let started = Instant::now();
        told(&model(&hub).unwrap_err(), Kind::Runtime, "it has sent nothing for 300ms", "HF_HUB_DOWNLOAD_TIMEOUT");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_hub_that_lists_files_outside_its_folder_is_not_believed() {
    let (server, cache) = (Server::start(&[("config.json", "{}"), ("../../x", "evil")]), tempfile::tempdir().unwrap());
    let error = model(&Hub::new(cache.path(), &server.endpoint)).unwrap_err();
    told(&error, Kind::Runtime, "named \"../../x\"", "");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn an_adapter_needs_no_config_of_a_model_and_a_folder_in_the_cache_knows_its_name() {
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::start(ADAPTER));
    let (snapshot, files) = model(&Hub::new(folder.path(), &server.endpoint)).unwrap();
    assert_eq!(snapshot.files, ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]);
    let name = name_of(files[0].parent().unwrap()).unwrap();
    assert_eq!(name, ("owner/name".to_string(), Some(COMMIT.to_string())));
    // Any other folder is called by its path.
    let (path, revision) = name_of(folder.path()).unwrap();
    assert!(Path::new(&path) == folder.path() && revision.is_none());
}
