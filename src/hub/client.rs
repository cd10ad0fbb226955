//! Requests to the hub, through the hub's own crate.
//!
//! Not here: which files are needed, and the errors for the user (`mod.rs`).

use super::{Hub, RepositoryKind, Snapshot, stays_inside};
use crate::logging::{self, Unit};
use crate::panics::contain;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};

/// Why a request failed.
pub(super) enum Failure {
    /// The hub answered with this HTTP status, 400 to 499.
    Refused(u16),
    /// The hub did not answer, or not as expected.
    Unreachable(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        if let ApiError::RequestError(request) = &error
            && let ureq::Error::StatusCode(status @ 400..=499) = **request
        {
            return Self::Refused(status);
        }
        Self::Unreachable(error.to_string())
    }
}

/// The commit of a revision, and its files.
pub(super) fn list(
    hub: &Hub,
    kind: RepositoryKind,
    repository: &str,
    revision: &str,
) -> Result<(String, Vec<String>), Failure> {
    let repo = repo(hub, kind, repository, revision)?;
    let info = guarded(hub, Arc::default(), move || repo.info())?;
    let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let strange = |name: &&String| !stays_inside(name);
    match files.iter().find(strange).or(Some(&info.sha).filter(|sha| !sha.chars().all(|c| c.is_ascii_alphanumeric()))) {
        Some(name) => Err(Failure::Unreachable(format!("it lists a file or commit named {name:?}"))),
        None => Ok((info.sha, files)),
    }
}

/// Puts a file of a snapshot into the cache.
pub(super) fn download(hub: &Hub, snapshot: &Snapshot, file: &str) -> Result<(), Failure> {
    let Snapshot { kind, repository, commit, .. } = snapshot;
    let bar = Bar { name: file.to_owned(), shown: None, received: Arc::default() };
    let (repo, file) = (repo(hub, *kind, repository, commit)?, file.to_owned());
    guarded(hub, bar.received.clone(), move || repo.download_with_progress(&file, bar)).map(|_| ())
}

/// Sends a request from a thread of its own, and gives up on it when `received`, the count of bytes, has not grown for the hub's
/// patience: the crate itself would wait for ever. Contains panics: the crate asserts what it expects of a hub's answers.
fn guarded<T: Send + 'static>(
    hub: &Hub,
    received: Arc<AtomicU64>,
    ask: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, Failure> {
    let (send, answer) = channel();
    let thread = std::thread::Builder::new().name("hub".into());
    let started = thread.spawn(move || drop(send.send(contain(ask))));
    started.map_err(|error| Failure::Unreachable(format!("cannot start a thread for the request: {error}")))?;
    let mut before = received.load(Ordering::Relaxed);
    loop {
        match answer.recv_timeout(hub.patience) {
            Ok(answer) => return answer.map_err(Failure::Unreachable)?.map_err(Failure::from),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Unreachable("the request ended without an answer".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = received.load(Ordering::Relaxed);
        if now == before {
            return Err(Failure::Unreachable(format!("it has sent nothing for {:?}", hub.patience)));
        }
        before = now;
    }
}

fn repo(hub: &Hub, kind: RepositoryKind, repository: &str, revision: &str) -> Result<ApiRepo, ApiError> {
    let kind = match kind {
        RepositoryKind::Model => RepoType::Model,
        RepositoryKind::Dataset => RepoType::Dataset,
    };
    let api: Api = ApiBuilder::from_cache(Cache::new(hub.cache.clone()))
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_user_agent("haf-dist", env!("CARGO_PKG_VERSION"))
        .with_retries(2)
        .build()?;
    Ok(api.repo(Repo::with_revision(repository.to_owned(), kind, revision.to_owned())))
}

/// A download among the program's other progress bars, in bytes.
struct Bar {
    name: String,
    shown: Option<logging::Progress>,
    received: Arc<AtomicU64>,
}

impl Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        // The previous bar is removed first.
        self.shown = None;
        self.shown = Some(logging::Progress::new(&self.name, Unit::Bytes, 0, size as u64));
    }

    fn update(&mut self, size: usize) {
        self.received.fetch_add(size as u64, Ordering::Relaxed);
        if let Some(shown) = &mut self.shown {
            shown.add(size as u64);
        }
    }

    fn finish(&mut self) {
        self.shown = None;
    }
}
