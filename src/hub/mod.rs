//! Models and data sets on the Hugging Face hub: which files an `hf://` path means, and where they are in the hub's cache.
//!
//! Transformers and the downloader of Datasets use the same cache, so files that they fetched are found. Not here: reading
//! the files, and how the ranks of a job take turns (`commands/hub.rs`).

mod cached;
mod choose;
mod client;
mod turn;

use crate::config::HubPath;
use crate::error::{Error, Result, file_error};
use client::Failure;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

const ENDPOINT: &str = "https://huggingface.co";

/// How long a hub may send nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A model or a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepositoryKind {
    /// A model's folder.
    Model,
    /// Files of pairs.
    Dataset,
}

impl RepositoryKind {
    fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }
}

/// The meaning of an `hf://` path at one commit: the same for every rank, wherever its cache is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// A model or a data set.
    pub(crate) kind: RepositoryKind,
    /// `owner/name`.
    pub(crate) repository: String,
    /// The requested branch, tag or commit.
    pub(crate) revision: String,
    /// The commit that it names.
    pub commit: String,
    /// The files that are needed, as paths in the repository.
    pub files: Vec<String>,
}

/// The hub and its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    patience: Duration,
}

impl Hub {
    /// A hub at `endpoint` with its cache in the folder `cache`; no token.
    pub fn new(cache: impl Into<PathBuf>, endpoint: &str) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { cache: cache.into(), endpoint, token: None, offline: false, patience: PATIENCE }
    }

    /// From the environment variables of Hugging Face's own programs: `HF_HUB_CACHE`, else `HF_HOME`/hub, else
    /// ~/.cache/huggingface/hub; `HF_ENDPOINT`; `HF_TOKEN`, else the token beside the cache; `HF_HUB_OFFLINE`;
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, the seconds that a hub may send nothing, else 60.
    ///
    /// # Errors
    /// There is no home folder, and no variable names the cache; seconds that are no number.
    pub(crate) fn from_env() -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home =
            || set("HF_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home()?.join("hub"))).ok_or_else(|| {
            Error::input("no home folder, so no place for the hub's cache").hint("set HF_HUB_CACHE to a folder")
        })?;
        let token_file = home().map(|home| home.join("token")).and_then(|path| std::fs::read_to_string(path).ok());
        let token =
            set("HF_TOKEN").or(token_file).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(&value.to_ascii_uppercase()[..], "1" | "ON" | "YES" | "TRUE"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let hub = Self { token, offline, ..Self::new(cache, &endpoint) };
        let Some(seconds) = set("HF_HUB_DOWNLOAD_TIMEOUT") else { return Ok(hub) };
        match seconds.parse() {
            Ok(seconds @ 1..) => Ok(hub.with_patience(Duration::from_secs(seconds))),
            _ => Err(Error::input(format!("HF_HUB_DOWNLOAD_TIMEOUT is {seconds:?}; expected seconds, 1 or more"))
                .hint("unset it for the default of 60")),
        }
    }

    /// The folder of its cache.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The same hub, which may send nothing for so long.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same hub, with only its cache in use.
    pub fn offline(self) -> Self {
        Self { offline: true, ..self }
    }

    /// Finds the files that a path means: asks the hub, or the cache if the hub cannot be reached or this one is offline.
    ///
    /// # Errors
    /// No such repository or revision, no permission to see it, no files of that split, no weights; without the hub: a
    /// repository that is not, or not completely, in the cache.
    pub fn look_up(&self, path: &HubPath, kind: RepositoryKind) -> Result<Snapshot> {
        let HubPath { repository, revision, part } = path;
        let (commit, listed) = self.list(path, kind)?;
        let files = match kind {
            RepositoryKind::Model => choose::model_files(&listed),
            RepositoryKind::Dataset => choose::split_files(&listed, part.as_deref()),
        };
        let files = files.map_err(|error| error.at(format!("hf://{repository}@{revision}")))?;
        let [repository, revision] = [repository, revision].map(String::clone);
        Ok(Snapshot { kind, repository, revision, commit, files })
    }

    /// Fetches only a model's config.json, and returns its folder.
    ///
    /// # Errors
    /// As [`Hub::look_up`] and [`Hub::fetch`].
    pub(crate) fn config_of(&self, path: &HubPath) -> Result<PathBuf> {
        let (commit, _) = self.list(path, RepositoryKind::Model)?;
        let [repository, revision] = [&path.repository, &path.revision].map(String::clone);
        let files = vec!["config.json".to_owned()];
        let snapshot = Snapshot { kind: RepositoryKind::Model, repository, revision, commit, files };
        self.fetch(&snapshot)?;
        Ok(self.folder(&snapshot))
    }

    /// Fetches a model without its weights (config, tokenizer and template), and returns its folder.
    ///
    /// # Errors
    /// As [`Hub::look_up`] and [`Hub::fetch`].
    pub(crate) fn without_weights(&self, path: &HubPath) -> Result<PathBuf> {
        let (commit, listed) = self.list(path, RepositoryKind::Model)?;
        let [repository, revision] = [&path.repository, &path.revision].map(String::clone);
        let files = choose::files_without_weights(&listed)
            .map_err(|error| error.at(format!("hf://{repository}@{revision}")))?;
        let snapshot = Snapshot { kind: RepositoryKind::Model, repository, revision, commit, files };
        self.fetch(&snapshot)?;
        Ok(self.folder(&snapshot))
    }

    /// The commit of a revision, and its files.
    fn list(&self, path: &HubPath, kind: RepositoryKind) -> Result<(String, Vec<String>)> {
        let cached = || cached::list(&self.repository_folder(kind, &path.repository), &path.revision);
        let name = format!("the {} {} at {}", kind.word(), path.repository, path.revision);
        if self.offline {
            return cached()?.ok_or_else(|| {
                Error::input(format!("{name} is not in the cache {}", self.cache.display()))
                    .hint("HF_HUB_OFFLINE is set: unset it to fetch this once, or name another HF_HUB_CACHE")
            });
        }
        match client::list(self, kind, &path.repository, &path.revision) {
            Ok(listed) => Ok(listed),
            Err(Failure::Refused(status)) => Err(self.refused(&name, status)),
            Err(Failure::Unreachable(why)) => match cached()? {
                Some(listed) => {
                    warn!("{} cannot be reached ({why}): using {name} from the cache", self.endpoint);
                    Ok(listed)
                }
                None => Err(self.unreachable(&name, &why)),
            },
        }
    }

    /// Fetches the files that are not in the cache yet, and returns the path of each file, in the snapshot's order.
    ///
    /// # Errors
    /// A hub that cannot be reached or refuses, or a cache that cannot be written.
    pub fn fetch(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>> {
        let folder = self.folder(snapshot);
        let lacks = |file: &String| !folder.join(file).exists();
        let repository = repository_name(snapshot.kind, &snapshot.repository);
        let mut fetched = false;
        for file in snapshot.files.iter().filter(|file| lacks(file)) {
            let name = format!("{file} of the {} {}", snapshot.kind.word(), snapshot.repository);
            if self.offline {
                return Err(Error::input(format!("{name} is not in the cache {}", self.cache.display()))
                    .hint("HF_HUB_OFFLINE is set: unset it to fetch this once"));
            }
            let _turn = turn::take(&self.cache, &repository, file);
            if !lacks(file) {
                // Another process has fetched it meanwhile.
                continue;
            }
            client::download(self, snapshot, file).map_err(|failure| match failure {
                Failure::Refused(status) => self.refused(&name, status),
                Failure::Unreachable(why) => self.unreachable(&name, &why),
            })?;
            if lacks(file) {
                return Err(Error::runtime(format!("{name} was fetched, but is not in {}", folder.display()))
                    .hint("the revision may have changed just now: try again"));
            }
            fetched = true;
        }
        if fetched {
            cached::note_revision(&self.repository_folder(snapshot.kind, &snapshot.repository), snapshot)?;
        }
        Ok(snapshot.files.iter().map(|file| folder.join(file)).collect())
    }

    /// The folder of a snapshot's files in the cache.
    pub fn folder(&self, snapshot: &Snapshot) -> PathBuf {
        self.repository_folder(snapshot.kind, &snapshot.repository).join("snapshots").join(&snapshot.commit)
    }

    fn repository_folder(&self, kind: RepositoryKind, repository: &str) -> PathBuf {
        self.cache.join(repository_name(kind, repository))
    }

    fn refused(&self, name: &str, status: u16) -> Error {
        let error = Error::input(format!("{} answers {status} for {name}", self.endpoint));
        match status {
            401 | 403 => error
                .hint("is the name right? If it is gated or private, accept its terms on its page and set HF_TOKEN"),
            404 => error.hint("is the name right, and is there such a revision?"),
            _ => error.hint("try again later, or set HF_HUB_OFFLINE=1 to use the cache alone"),
        }
    }

    fn unreachable(&self, name: &str, why: &str) -> Error {
        Error::runtime(format!("cannot fetch {name} from {}: {why}", self.endpoint)).hint(format!(
            "is there a network? HF_ENDPOINT names another hub, HF_HUB_DOWNLOAD_TIMEOUT=N lets it be \
             silent for N seconds; without one, copy the files here and name their path, or fill the cache {}",
            self.cache.display()
        ))
    }
}

/// The name of a repository's folder in the cache.
fn repository_name(kind: RepositoryKind, repository: &str) -> String {
    let kind = match kind {
        RepositoryKind::Model => "models",
        RepositoryKind::Dataset => "datasets",
    };
    format!("{kind}--{}", repository.replace('/', "--"))
}

/// A model folder's name for other programs: its name on the hub and its commit if it is in a cache of the hub
/// (`models--OWNER--NAME/snapshots/COMMIT`), else its absolute path.
///
/// # Errors
/// The path cannot be made absolute.
pub fn name_of(folder: &Path) -> Result<(String, Option<String>)> {
    let whole = std::path::absolute(folder).map_err(|error| file_error(folder, "find", &error))?;
    let mut steps = whole.iter().rev().map(|step| step.to_string_lossy());
    if let (Some(commit), Some("snapshots"), Some(repository)) = (steps.next(), steps.next().as_deref(), steps.next())
        && let Some((owner, name)) = repository.strip_prefix("models--").and_then(|rest| rest.split_once("--"))
    {
        return Ok((format!("{owner}/{name}"), Some(commit.into_owned())));
    }
    Ok((whole.to_string_lossy().into_owned(), None))
}

/// Whether a name from outside stays within the folder it is joined to.
fn stays_inside(file: &str) -> bool {
    Path::new(file).components().all(|step| matches!(step, std::path::Component::Normal(_)))
}
