//! A cache file: safetensors with a version, a key and a checksum, written atomically and memory-mapped.
//!
//! safetensors, so that Python users can look into it. Not here: which columns a cache holds and what they mean
//! (`prepared.rs`, `reference_cache.rs`).

use crate::error::{Error, Result};
use crate::files::{self, Map, fingerprint_parts};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(target_endian = "big")]
compile_error!("cache files are little-endian and used in place");

/// A number that a column may hold.
pub(super) trait Number: FromBytes + IntoBytes + KnownLayout + Immutable {
    /// Its name in the file.
    const DTYPE: Dtype;
}

impl Number for u32 {
    const DTYPE: Dtype = Dtype::U32;
}
impl Number for u64 {
    const DTYPE: Dtype = Dtype::U64;
}
impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

/// Where a checked tensor lies in its container.
#[derive(Debug, Clone)]
pub(super) struct Column<T> {
    bytes: Range<usize>,
    number: PhantomData<T>,
}

/// What goes into a file.
pub(super) struct Contents<'a> {
    /// Name -> tensor.
    pub tensors: BTreeMap<&'static str, TensorView<'a>>,
    /// Name -> text.
    pub texts: BTreeMap<String, String>,
}

impl Contents<'_> {
    /// Hash of all names, tensors and texts.
    pub fn fingerprint(&self) -> u128 {
        fingerprint(self.tensors.iter().map(|(&name, tensor)| (name, tensor.data())), &self.texts)
    }

    /// Serialises them as a file of this version and key.
    pub fn pack(mut self, version: &str, key: u128) -> Result<Vec<u8>> {
        self.texts.insert("version".to_owned(), version.to_owned());
        self.texts.insert("key".to_owned(), hex(key));
        let checksum = hex(self.fingerprint());
        self.texts.insert("checksum".to_owned(), checksum);
        safetensors::serialize(self.tensors, Some(self.texts.into_iter().collect()))
            .map_err(|error| Error::runtime(format!("safetensors: {error}")))
    }
}

/// A one-dimensional tensor for [`Contents`].
pub(super) fn column<T: Number>(values: &[T]) -> Result<TensorView<'_>> {
    TensorView::new(T::DTYPE, vec![values.len()], values.as_bytes())
        .map_err(|error| Error::runtime(format!("safetensors: {error}")))
}

/// An open cache file, or one that lives in memory only: in both cases a read-only map.
#[derive(Debug)]
pub(super) struct Container {
    map: Map,
    texts: BTreeMap<String, String>,
}

impl Container {
    /// Opens and checks a file: `Ok(None)` if there is none, `Err(why)` if it is stale, cut or damaged.
    /// Reads it once from end to end, for the checksum.
    pub fn open(path: &Path, version: &str, key: u128) -> std::result::Result<Option<Self>, String> {
        match files::map(path) {
            Ok(map) => Self::check(map, version, key).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("it cannot be read: {error}")),
        }
    }

    /// Packed bytes as a container that belongs to no file.
    pub fn in_memory(packed: &[u8], version: &str, key: u128) -> Result<Self> {
        // A map is page-aligned, which a Vec<u8> is not.
        let map = Map::of_bytes(packed)
            .map_err(|error| Error::runtime(format!("cannot get {} bytes of memory: {error}", packed.len())))?;
        Self::check(map, version, key).map_err(Error::runtime)
    }

    fn check(map: Map, version: &str, key: u128) -> std::result::Result<Self, String> {
        let damaged = |error| format!("it is not a whole safetensors file: {error}");
        let (_, header) = SafeTensors::read_metadata(&map).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(&map).map_err(damaged)?;
        let mut texts: BTreeMap<_, _> =
            header.metadata().iter().flatten().map(|(name, text)| (name.clone(), text.clone())).collect();
        let found_checksum = texts.remove("checksum").unwrap_or_default();
        for (name, expected) in [("version", version.to_owned()), ("key", hex(key))] {
            let found = texts.get(name).map_or("none", String::as_str);
            if found != expected {
                return Err(format!("its {name} is {found}, not {expected}"));
            }
        }
        let tensors: BTreeMap<&str, &[u8]> = tensors.iter().map(|(name, tensor)| (name, tensor.data())).collect();
        if found_checksum != hex(fingerprint(tensors, &texts)) {
            return Err("its content does not match its checksum".to_owned());
        }
        Ok(Self { map, texts })
    }

    /// A text of the metadata.
    pub fn text(&self, name: &str) -> std::result::Result<&str, String> {
        self.texts.get(name).map(String::as_str).ok_or_else(|| format!("it has no {name:?} in its metadata"))
    }

    /// Hash of all names and tensors, without the texts: another file of the same content may name other sources.
    pub fn content(&self) -> u128 {
        let tensors = SafeTensors::deserialize(&self.map).map(|tensors| tensors.tensors()).unwrap_or_default();
        let tensors: BTreeMap<&str, &[u8]> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.data())).collect();
        fingerprint(tensors, &BTreeMap::new())
    }

    /// Finds a tensor and checks its type and alignment.
    pub fn column<T: Number>(&self, name: &str) -> std::result::Result<Column<T>, String> {
        let tensors = SafeTensors::deserialize(&self.map).map_err(|error| error.to_string())?;
        let tensor = tensors.tensor(name).map_err(|_| format!("it has no tensor {name:?}"))?;
        if tensor.dtype() != T::DTYPE || <[T]>::ref_from_bytes(tensor.data()).is_err() {
            return Err(format!("its tensor {name:?} is not aligned {:?}", T::DTYPE));
        }
        let start = tensor.data().as_ptr().addr() - self.map.as_ptr().addr();
        Ok(Column { bytes: start..start + tensor.data().len(), number: PhantomData })
    }

    /// A tensor's elements, flat.
    pub fn values<T: Number>(&self, column: &Column<T>) -> &[T] {
        // `column` checked the cast: the default is for the type only.
        <[T]>::ref_from_bytes(&self.map[column.bytes.clone()]).unwrap_or_default()
    }
}

/// A key as it stands in file names and metadata.
pub(super) fn hex(key: u128) -> String {
    format!("{key:032x}")
}

/// Says that a cache file is of no use and what follows from that.
pub(super) fn warn_unusable(path: &Path, why: &str) {
    tracing::warn!("{} is made again: {why}", path.display());
}

/// xxh3-128 over names and bytes of all tensors and texts, in the order of their names.
fn fingerprint<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    texts: &'a BTreeMap<String, String>,
) -> u128 {
    let texts = texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
    fingerprint_parts(tensors.into_iter().chain(texts).flat_map(|(name, bytes)| [name.as_bytes(), bytes]))
}
