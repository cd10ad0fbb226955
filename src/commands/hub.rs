//! Turns `hf://` paths into local ones: rank 0 fetches into the cache; the other ranks then find the files there, or fetch them
//! too if they do not share its disk. Also turns `-`, standard input, which rank 0 reads for all, into a path.
//!
//! Not here: the meaning of such a path (`hub/`).

use crate::checkpoint;
use crate::cli::{Evaluating, Exporting, Scoring, Verifying};
use crate::comm::CommThread;
use crate::config::{Config, HubPath, RowRange, Source, domain_of};
use crate::error::{Error, Result, expect_folder};
use crate::evaluate::suites::Suite;
use crate::files;
use crate::hub::{Hub, RepositoryKind, Snapshot};
use crate::model::adapter;
use crate::model::peft::PeftConfig;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use tracing::info;

/// Replaces `hf://` paths of the model and the sources by local ones. A split in several files becomes as many sources that
/// differ only in their path. The commit is part of the new paths, so a run's own config names it. All ranks must call it.
///
/// # Errors
/// A path that does not exist on the hub, or a hub that cannot be reached for files that are not in the cache; the error names
/// the key.
pub(crate) fn fetch_all(mut config: Config, comm: &CommThread) -> Result<Config> {
    config.model.path = model(&config.model.path, "model.path", comm)?;
    if let Some(lora) = &mut config.lora {
        lora.base = base(&config.model.path, lora.base.as_deref(), "lora.base", comm)?;
    }
    let data = &mut config.data;
    for (split, sources) in [("train", &mut data.train), ("dev", &mut data.dev), ("test", &mut data.test)] {
        let mut fetched = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let files = dataset(&source.path, &format!("data.{split}.{index}.path"), comm)?;
            if files.len() > 1 && source.rows != RowRange::default() {
                let message = format!("data.{split}.{index}.rows: the split has {} files", files.len());
                return Err(Error::input(message).hint("rows are counted in one file: name the file in the path"));
            }
            fetched.extend(files.into_iter().map(|path| Source { path, ..source.clone() }));
        }
        *sources = fetched;
    }
    Ok(config)
}

/// The same for the arguments of `eval` and `score`. Returns also the data's files. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_scoring(scoring: &Scoring, comm: &CommThread) -> Result<(Scoring, Vec<PathBuf>)> {
    let checkpoint = checkpoint(&scoring.checkpoint, "--checkpoint", comm)?;
    let base = base(&checkpoint, scoring.base.as_deref(), "--base", comm)?;
    let files = dataset(&scoring.data, "--data", comm)?;
    let data = files.first().cloned().unwrap_or_default();
    Ok((Scoring { checkpoint, base, data, ..scoring.clone() }, files))
}

/// The files of all `--data`, each with the name that its pairs are reported under: None for a single `--data`. All
/// ranks must call it.
///
/// # Errors
/// As [`fetch_all`]; a file that is named twice.
pub(crate) fn fetch_pairs(data: &[PathBuf], comm: &CommThread) -> Result<Vec<(PathBuf, Option<String>)>> {
    let mut files = Vec::new();
    for path in data {
        let named = if path.as_os_str() == files::DASH { Path::new(files::STANDARD_INPUT) } else { path };
        let domain = domain_of(named).filter(|_| data.len() > 1);
        files.extend(dataset(path, "--data", comm)?.into_iter().map(|file| (file, domain.clone())));
    }
    comm.agree(files::each_once(files.iter().map(|(path, _)| path.as_path()), "--data"))?;
    Ok(files)
}

/// The same for an evaluation on suites: both checkpoints, the suites' files and the training data. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_evaluating(evaluating: &Evaluating, comm: &CommThread) -> Result<Evaluating> {
    let (scoring, _) = fetch_scoring(&evaluating.scoring, comm)?;
    let suites = fetch_suites(&evaluating.suites, comm)?;
    let against = evaluating.against.as_deref().map(|path| checkpoint(path, "--against", comm)).transpose()?;
    let files = evaluating.train_data.iter().map(|file| dataset(file, "--train-data", comm));
    let train_data = files.collect::<Result<Vec<_>>>()?.concat();
    Ok(Evaluating { scoring, suites, against, train_data, ..evaluating.clone() })
}

/// The same for the files of suites. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
fn fetch_suites(suites: &[(Suite, Vec<PathBuf>)], comm: &CommThread) -> Result<Vec<(Suite, Vec<PathBuf>)>> {
    let fetched = |(suite, files): &(Suite, Vec<PathBuf>)| {
        let key = format!("--suite {}", suite.name());
        let files = files.iter().map(|file| dataset(file, &key, comm)).collect::<Result<Vec<_>>>()?;
        Ok((*suite, files.concat()))
    };
    suites.iter().map(fetched).collect()
}

/// The same for the arguments of `export`. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_exporting(exporting: &Exporting, comm: &CommThread) -> Result<Exporting> {
    let checkpoint = checkpoint(&exporting.checkpoint, "CHECKPOINT", comm)?;
    let base = base(&checkpoint, exporting.base.as_deref(), "--base", comm)?;
    Ok(Exporting { checkpoint, base, ..exporting.clone() })
}

/// The same for the arguments of `verify`. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_verifying(verifying: &Verifying, comm: &CommThread) -> Result<Verifying> {
    let checkpoint = checkpoint(&verifying.checkpoint, "CHECKPOINT", comm)?;
    let base = base(&checkpoint, verifying.base.as_deref(), "--base", comm)?;
    Ok(Verifying { checkpoint, base, ..verifying.clone() })
}

/// A model's local folder, for a command with one process.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_model_alone(folder: &Path) -> Result<PathBuf> {
    let Some(path) = parsed(folder)? else { return Ok(folder.to_path_buf()) };
    let hub = Hub::from_env()?;
    let snapshot = hub.look_up(&path, RepositoryKind::Model)?;
    hub.fetch(&snapshot)?;
    Ok(hub.folder(&snapshot))
}

/// A folder with the model's config.json, and perhaps nothing else.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn fetch_config_alone(folder: &Path) -> Result<PathBuf> {
    match parsed(folder)? {
        Some(path) => Hub::from_env()?.config_of(&path),
        None => Ok(folder.to_path_buf()),
    }
}

/// Checks that a split on the hub exists, there or in the cache; fetches nothing.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn look_up_alone(path: &Path) -> Result<()> {
    match parsed(path)? {
        Some(split) => Hub::from_env()?.look_up(&split, RepositoryKind::Dataset).map(|_| ()),
        None => Ok(()),
    }
}

/// A local folder with all files of a model on the hub except its weights.
///
/// # Errors
/// As [`fetch_all`], and a path that is not on the hub.
pub(crate) fn fetch_without_weights_alone(path: &Path) -> Result<PathBuf> {
    let on_hub = parsed(path)?;
    let on_hub = on_hub.ok_or_else(|| Error::input(format!("{} is not on the hub", path.display())))?;
    Hub::from_env()?.without_weights(&on_hub)
}

/// The files of a split from the hub's cache, without asking the hub.
///
/// # Errors
/// A path that does not exist, or a split that is not complete in the cache.
pub(crate) fn cached_split(path: &Path) -> Result<Vec<PathBuf>> {
    let on_hub = parsed(path)?;
    let on_hub = on_hub.ok_or_else(|| Error::input(format!("{} is not on the hub", path.display())))?;
    let hub = Hub::from_env()?.offline();
    hub.fetch(&hub.look_up(&on_hub, RepositoryKind::Dataset)?)
}

/// Checks that a model's folder is there, and asks whether the hub's was meant.
///
/// # Errors
/// An input error with the absolute path that was tried.
pub(crate) fn expect_model(folder: &Path) -> Result<()> {
    expect_folder(folder).map_err(|error| {
        let path = format!("hf://{}", folder.display());
        match (HubPath::parse(Path::new(&path)), &error.hint) {
            (Some(Ok(HubPath { part: None, .. })), Some(hint)) if !folder.exists() => {
                let hint = format!("{hint} For a model on the hub write {path}");
                error.hint(hint)
            }
            _ => error,
        }
    })
}

/// Whether a path is an `hf://` path, valid or not.
pub(crate) fn is_on_hub(path: &Path) -> bool {
    HubPath::parse(path).is_some()
}

/// An `hf://` path; `None` for any other.
fn parsed(path: &Path) -> Result<Option<HubPath>> {
    let parsed = HubPath::parse(path).transpose();
    parsed.map_err(|wrong| Error::input(wrong).hint("for example hf://owner/name"))
}

/// A model's folder; for a run's folder, the checkpoint that rank 0 picks.
fn checkpoint(path: &Path, key: &str, comm: &CommThread) -> Result<PathBuf> {
    let folder = model(path, key, comm)?;
    let found = comm.agree(if comm.rank() == 0 { checkpoint::of_run(&folder) } else { Ok(None) })?;
    if let Some(found) = &found {
        info!("{} is a run: taking {}", folder.display(), found.display());
    }
    let chosen = found.unwrap_or(folder).into_os_string().into_vec();
    Ok(PathBuf::from(OsString::from_vec(comm.broadcast_bytes(Some(chosen))?)))
}

fn model(path: &Path, key: &str, comm: &CommThread) -> Result<PathBuf> {
    let fetched = fetched(path, RepositoryKind::Model, comm).map_err(|error| error.at(key))?;
    match fetched {
        Some((folder, _)) => Ok(folder),
        None => comm.agree(expect_model(path).map_err(|error| error.at(key))).map(|()| path.to_path_buf()),
    }
}

/// Local folder of the base of a second checkpoint, if that is an adapter whose base is on the hub. All ranks must call it.
///
/// # Errors
/// As [`fetch_all`].
pub(crate) fn base_of(folder: &Path, comm: &CommThread) -> Result<Option<PathBuf>> {
    base(folder, None, "--against", comm)
}

/// Local folder of the base of the adapter in `folder`: `given`, or the one on the hub that the adapter's config names.
/// `None` if the config names a local folder, and for a folder that is not an adapter.
fn base(folder: &Path, given: Option<&Path>, key: &str, comm: &CommThread) -> Result<Option<PathBuf>> {
    let is_adapter = comm.all_true(PeftConfig::is_in(folder))?;
    if let Some(path) = given {
        return if is_adapter { model(path, key, comm).map(Some) } else { Ok(Some(path.to_path_buf())) };
    }
    if !is_adapter {
        return Ok(None);
    }
    let config = comm.agree(PeftConfig::open(folder))?;
    if comm.all_true(adapter::local_base(folder, &config).is_some())? {
        return Ok(None);
    }
    let name = config.base_model_name_or_path.unwrap_or_default();
    let path = PathBuf::from(match config.revision {
        Some(revision) => format!("hf://{name}@{revision}"),
        None => format!("hf://{name}"),
    });
    match HubPath::parse(&path) {
        Some(Ok(HubPath { part: None, .. })) => {
            model(&path, &format!("the base of {}", folder.display()), comm).map(Some)
        }
        _ => Ok(None),
    }
}

fn dataset(path: &Path, key: &str, comm: &CommThread) -> Result<Vec<PathBuf>> {
    if path.as_os_str() == files::DASH {
        standard_input(comm).map_err(|error| error.at(key))?;
        return Ok(vec![files::STANDARD_INPUT.into()]);
    }
    let fetched = fetched(path, RepositoryKind::Dataset, comm).map_err(|error| error.at(key))?;
    Ok(fetched.map_or_else(|| vec![path.to_path_buf()], |(_, files)| files))
}

/// Rank 0 reads standard input and lends it to the others. All ranks must call it.
fn standard_input(comm: &CommThread) -> Result<()> {
    let _work = comm.at_work("reading standard input");
    let several = comm.world_size() > 1;
    let read = || {
        files::read_standard_input()?;
        if several { files::lend_standard_input().map(Some) } else { Ok(None) }
    };
    // The copy is deleted when dropped; by then every rank has it open.
    let copy = comm.agree(if comm.rank() == 0 { read() } else { Ok(None) })?;
    if !several {
        return Ok(());
    }
    let path = copy.as_ref().map(|copy| copy.path().as_os_str().to_owned().into_vec()).unwrap_or_default();
    let path = PathBuf::from(OsString::from_vec(comm.broadcast_bytes(Some(path))?));
    comm.agree(if comm.rank() == 0 { Ok(()) } else { files::borrow_standard_input(&path) })
}

/// The folder and the files of an `hf://` path; `None` for any other.
fn fetched(path: &Path, kind: RepositoryKind, comm: &CommThread) -> Result<Option<(PathBuf, Vec<PathBuf>)>> {
    let Some(parsed) = parsed(path)? else { return Ok(None) };
    let hub = comm.agree(Hub::from_env())?;
    let look_up = || {
        let snapshot = hub.look_up(&parsed, kind)?;
        hub.fetch(&snapshot)?;
        serde_json::to_vec(&snapshot).map_err(|error| Error::runtime(format!("a snapshot as JSON: {error}")))
    };
    let _work = comm.at_work(format!("fetching {}", path.display()));
    let of_rank_0 = comm.agree(if comm.rank() == 0 { look_up() } else { Ok(Vec::new()) })?;
    let bytes = comm.broadcast_bytes(Some(of_rank_0))?;
    let snapshot: Snapshot = serde_json::from_slice(&bytes)
        .map_err(|error| Error::runtime(format!("rank 0's snapshot arrived damaged: {error}")))?;
    let files = comm.agree(hub.fetch(&snapshot))?;
    Ok(Some((hub.folder(&snapshot), files)))
}
