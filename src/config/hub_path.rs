//! `hf://owner/name[@revision][/file or config/split]`: a path on the Hugging Face hub.
//!
//! Not here: looking it up (`hub/`).

use std::path::Path;

const SCHEME: &str = "hf://";

/// A parsed `hf://` path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubPath {
    /// `owner/name`.
    pub(crate) repository: String,
    /// A branch, a tag or a commit; `main` if none is named.
    pub(crate) revision: String,
    /// What follows the name: a file, `split` or `config/split`.
    pub(crate) part: Option<String>,
}

impl HubPath {
    /// Parses a path; `None` if it does not start with `hf://`.
    ///
    /// # Errors
    /// A message that continues the name of the path's key.
    pub fn parse(path: &Path) -> Option<Result<Self, String>> {
        let rest = path.to_str()?.strip_prefix(SCHEME)?;
        Some(Self::after_scheme(rest).ok_or_else(|| {
            format!("= \"{}\"; expected {SCHEME}owner/name[@revision][/file or config/split]", path.display())
        }))
    }

    fn after_scheme(rest: &str) -> Option<Self> {
        let mut parts = rest.splitn(3, '/');
        let (owner, name, part) = (parts.next()?, parts.next()?, parts.next());
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        // These parts become file names in the cache.
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let part = part.map(|part| part.trim_end_matches('/')).filter(|part| !part.is_empty());
        let inside = part.is_none_or(|part| part.split('/').all(|step| !matches!(step, "" | "." | "..")));
        (plain(owner) && plain(name) && plain(revision) && inside).then(|| Self {
            repository: format!("{owner}/{name}"),
            revision: revision.to_owned(),
            part: part.map(str::to_owned),
        })
    }

    /// The repository's name without its owner.
    pub(crate) fn name(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_what_would_leave_the_cache_is_refused() {
        let parse = |text: &str| HubPath::parse(Path::new(text));
        let path = |repository: &str, revision: &str, part: Option<&str>| {
            let [repository, revision] = [repository, revision].map(str::to_owned);
            Some(Ok(HubPath { repository, revision, part: part.map(str::to_owned) }))
        };
        assert_eq!(parse("data/pairs.jsonl"), None);
        assert_eq!(parse("hf://a/b"), path("a/b", "main", None));
        assert_eq!(parse("hf://a/b-1.2@v1/c/train/"), path("a/b-1.2", "v1", Some("c/train")));
        for wrong in ["hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/b@", "hf://a/b/../c", "hf://../b", "hf://a/b//c"]
        {
            assert!(parse(wrong).is_some_and(|parsed| parsed.is_err()), "{wrong}");
        }
    }
}
