//! Models and data sets on the Hugging Face hub: which files an `hf://` path means, and where they lie in the hub's cache.
//!
//! The cache is the one that Transformers and Datasets' downloader fill, so what they fetched is found. Not here: reading
//! the files, and what the ranks of a job do in turn (`commands/hub.rs`).

mod cached;
mod choose;
mod client;

use crate::config::HubPath;
use crate::error::{Error, Result, file_error};
use client::Failure;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tracing::warn;

const ENDPOINT: &str = "https://huggingface.co";

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

/// What an `hf://` path means at one commit: the same for every rank, wherever its cache is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// A model or a data set.
    pub kind: RepositoryKind,
    /// `owner/name`.
    pub repository: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it was.
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
}

impl Hub {
    /// A hub at `endpoint` with its cache in the folder `cache`; no token.
    pub fn new(cache: impl Into<PathBuf>, endpoint: &str) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { cache: cache.into(), endpoint, token: None, offline: false }
    }

    /// As the variables say that all of the hub's programs read: `HF_HUB_CACHE`, else `HF_HOME`/hub, else
    /// ~/.cache/huggingface/hub; `HF_ENDPOINT`; `HF_TOKEN`, else the token beside the cache; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// Nothing says where the cache is.
    pub fn from_env() -> Result<Self> {
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
        Ok(Self { token, offline, ..Self::new(cache, &endpoint) })
    }

    /// The folder of its cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The same hub, of which only the cache is used.
    pub fn offline(self) -> Self {
        Self { offline: true, ..self }
    }

    /// Finds out which files a path means. Asks the hub; where that cannot be reached, or is not to be asked, the cache.
    ///
    /// # Errors
    /// No such repository or revision, no right to see it, no files of that split, no weights; without the hub: a
    /// repository that is not in the cache, or not all of it.
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

    /// The folder with a model's config.json, of which nothing else is fetched.
    ///
    /// # Errors
    /// As [`Hub::look_up`] and [`Hub::fetch`].
    pub fn config_of(&self, path: &HubPath) -> Result<PathBuf> {
        let (commit, _) = self.list(path, RepositoryKind::Model)?;
        let [repository, revision] = [&path.repository, &path.revision].map(String::clone);
        let files = vec!["config.json".to_owned()];
        let snapshot = Snapshot { kind: RepositoryKind::Model, repository, revision, commit, files };
        self.fetch(&snapshot)?;
        Ok(self.folder(&snapshot))
    }

    /// The folder with all of a model but its weights: config, tokenizer and template.
    ///
    /// # Errors
    /// As [`Hub::look_up`] and [`Hub::fetch`].
    pub fn without_weights(&self, path: &HubPath) -> Result<PathBuf> {
        let (commit, listed) = self.list(path, RepositoryKind::Model)?;
        let [repository, revision] = [&path.repository, &path.revision].map(String::clone);
        let files = choose::files_besides_weights(&listed)
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
                    .hint("HF_HUB_OFFLINE is set: fetch it once without, or name another HF_HUB_CACHE")
            });
        }
        match client::list(self, kind, &path.repository, &path.revision) {
            Ok(listed) => Ok(listed),
            Err(Failure::Refused(status)) => Err(self.refused(&name, status)),
            Err(Failure::Unreachable(why)) => match cached()? {
                Some(listed) => {
                    warn!("{} cannot be reached ({why}): {name} is taken as it is in the cache", self.endpoint);
                    Ok(listed)
                }
                None => Err(self.unreachable(&name, &why)),
            },
        }
    }

    /// Fetches what is not in the cache yet, and returns where each file lies, in the snapshot's order.
    ///
    /// # Errors
    /// A hub that cannot be reached or refuses, or a cache that takes no files.
    pub fn fetch(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>> {
        let folder = self.folder(snapshot);
        let mut fetched = false;
        for file in &snapshot.files {
            if folder.join(file).exists() {
                continue;
            }
            let name = format!("{file} of the {} {}", snapshot.kind.word(), snapshot.repository);
            if self.offline {
                return Err(Error::input(format!("{name} is not in the cache {}", self.cache.display()))
                    .hint("HF_HUB_OFFLINE is set: fetch it once without"));
            }
            client::download(self, snapshot, file).map_err(|failure| match failure {
                Failure::Refused(status) => self.refused(&name, status),
                Failure::Unreachable(why) => self.unreachable(&name, &why),
            })?;
            if !folder.join(file).exists() {
                return Err(Error::runtime(format!("{name} was fetched, but is not in {}", folder.display()))
                    .hint("did the revision move just now? try again"));
            }
            fetched = true;
        }
        if fetched {
            cached::note_revision(&self.repository_folder(snapshot.kind, &snapshot.repository), snapshot)?;
        }
        Ok(snapshot.files.iter().map(|file| folder.join(file)).collect())
    }

    /// The folder in the cache that a snapshot's files lie in.
    pub fn folder(&self, snapshot: &Snapshot) -> PathBuf {
        self.repository_folder(snapshot.kind, &snapshot.repository).join("snapshots").join(&snapshot.commit)
    }

    fn repository_folder(&self, kind: RepositoryKind, repository: &str) -> PathBuf {
        let kind = match kind {
            RepositoryKind::Model => "models",
            RepositoryKind::Dataset => "datasets",
        };
        self.cache.join(format!("{kind}--{}", repository.replace('/', "--")))
    }

    fn refused(&self, name: &str, status: u16) -> Error {
        let error = Error::input(format!("{} answers {status} for {name}", self.endpoint));
        match status {
            401 | 403 => error.hint(
                "is the name right? A gated or private one needs its terms accepted on its page, and HF_TOKEN set",
            ),
            404 => error.hint("is the name right, and is there such a revision?"),
            _ => error.hint("try again later, or set HF_HUB_OFFLINE=1 to use the cache alone"),
        }
    }

    fn unreachable(&self, name: &str, why: &str) -> Error {
        Error::runtime(format!("cannot fetch {name} from {}: {why}", self.endpoint)).hint(format!(
            "is there a network? HF_ENDPOINT names another hub; without one, copy the files here and name their path, \
             or fill the cache {}",
            self.cache.display()
        ))
    }
}

/// What other programs call a model's folder: its name on the hub and the commit where it lies in a cache of the hub's
/// (`models--OWNER--NAME/snapshots/COMMIT`), else its absolute path.
///
/// # Errors
/// A folder that is not there.
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
