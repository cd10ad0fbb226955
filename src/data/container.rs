//! A cache file: safetensors with a version, a key and a checksum, written atomically and memory-mapped.
//!
//! It is safetensors so that Python users can look into it. Not here: which columns a cache has and what they mean
//! (`prepared.rs`, `reference_cache.rs`).

use crate::error::{Error, Result, file_error};
use crate::files::{self, Fingerprint, Map};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use tempfile::NamedTempFile;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(target_endian = "big")]
compile_error!("cache files are little-endian and used in place");

/// Bytes that are read, hashed or written at a time.
const PIECE: usize = 1 << 20;

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

/// The place of a checked tensor in its container.
#[derive(Debug, Clone)]
pub(super) struct Column<T> {
    bytes: Range<usize>,
    number: PhantomData<T>,
}

/// A growing column: in memory, or in a temporary file.
#[derive(Debug)]
pub(super) struct Growing<T> {
    /// Numbers that are not in the file yet.
    bytes: Vec<u8>,
    file: Option<NamedTempFile>,
    length: usize,
    number: PhantomData<T>,
}

impl<T: Number> Growing<T> {
    /// An empty column: in a temporary file in `folder`, or in memory without one.
    pub(crate) fn new(folder: Option<&Path>) -> Result<Self> {
        let unfinished = |folder: &Path| {
            let path = folder.join("column");
            files::unfinished_file(&path).map_err(|error| file_error(folder, "write into", &error))
        };
        let file = folder.map(unfinished).transpose()?;
        Ok(Self { bytes: Vec::new(), file, length: 0, number: PhantomData })
    }

    /// Numbers so far.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Adds numbers at the end.
    pub(crate) fn push(&mut self, values: &[T]) -> Result<()> {
        self.bytes.extend_from_slice(values.as_bytes());
        self.length += values.len();
        if self.file.is_some() && self.bytes.len() >= PIECE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(&self.bytes);
        self.bytes.clear();
        written.map_err(|error| file_error(file.path(), "write", &error))
    }

    /// The complete column.
    pub(crate) fn done(mut self) -> Result<Tensor> {
        self.write()?;
        let bytes = match self.file {
            Some(file) => Bytes::File(file),
            None => Bytes::Memory(self.bytes),
        };
        Ok(Tensor { dtype: T::DTYPE, length: self.length, bytes })
    }
}

/// A one-dimensional tensor that is complete.
#[derive(Debug)]
pub(super) struct Tensor {
    dtype: Dtype,
    length: usize,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    File(NamedTempFile),
}

impl Tensor {
    /// A tensor in memory.
    pub(crate) fn of<T: Number>(values: &[T]) -> Self {
        Self { dtype: T::DTYPE, length: values.len(), bytes: Bytes::Memory(values.as_bytes().to_vec()) }
    }

    fn size(&self) -> usize {
        self.length * self.dtype.bitsize() / 8
    }

    /// A reader of its bytes, from the start.
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match &self.bytes {
            Bytes::Memory(bytes) => Box::new(&bytes[..]),
            Bytes::File(file) => Box::new(file.reopen()?),
        })
    }
}

/// The content of a cache file.
pub(super) struct Contents {
    /// Name -> tensor.
    pub(crate) tensors: BTreeMap<&'static str, Tensor>,
    /// Name -> text.
    pub(crate) texts: BTreeMap<String, String>,
}

impl Contents {
    /// Hash of all names, tensors and texts.
    pub(crate) fn fingerprint(&self) -> io::Result<u128> {
        let mut hash = Fingerprint::default();
        for (name, tensor) in &self.tensors {
            hash.add(name.as_bytes());
            hash.begin(tensor.size());
            let mut bytes = tensor.open()?;
            let mut piece = vec![0; PIECE];
            loop {
                let read = bytes.read(&mut piece)?;
                if read == 0 {
                    break;
                }
                hash.more(&piece[..read]);
            }
        }
        Ok(hash.of_texts(&self.texts))
    }

    /// Writes a file with this version and key, completely or not at all.
    pub(crate) fn save(self, path: &Path, version: &str, key: u128) -> Result<()> {
        files::write_atomic_with(path, |file| self.write(&mut BufWriter::with_capacity(PIECE, file), version, key))
    }

    /// The bytes of such a file.
    pub(crate) fn pack(self, version: &str, key: u128) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let failed = |error| Error::runtime(format!("cannot write a cache in memory: {error}"));
        self.write(&mut bytes, version, key).map_err(failed)?;
        Ok(bytes)
    }

    /// The safetensors format: the header's length, the header, the tensors one after the other. Those with wider numbers come
    /// first, so that each is aligned.
    fn write(mut self, to: &mut impl Write, version: &str, key: u128) -> io::Result<()> {
        self.texts.insert("version".to_owned(), version.to_owned());
        self.texts.insert("key".to_owned(), hex(key));
        let checksum = hex(self.fingerprint()?);
        self.texts.insert("checksum".to_owned(), checksum);
        let mut ordered: Vec<(&&str, &Tensor)> = self.tensors.iter().collect();
        ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.bitsize()));
        let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), json!(self.texts))]);
        let mut start = 0;
        for (name, tensor) in &ordered {
            let end = start + tensor.size();
            let entry = json!({"dtype": tensor.dtype, "shape": [tensor.length], "data_offsets": [start, end]});
            header.insert((**name).to_owned(), entry);
            start = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        // The tensors start at a multiple of eight bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(&header)?;
        for (_, tensor) in ordered {
            io::copy(&mut tensor.open()?, to)?;
        }
        to.flush()
    }
}

/// An open cache file, or one in memory: a read-only map in both cases.
#[derive(Debug)]
pub(super) struct Container {
    map: Map,
    texts: BTreeMap<String, String>,
}

impl Container {
    /// Opens and checks a file: `Ok(None)` if there is none, `Err(why)` if it is stale, cut or damaged.
    /// Reads it once from end to end, for the checksum.
    pub(crate) fn open(path: &Path, version: &str, key: u128) -> std::result::Result<Option<Self>, String> {
        match files::map(path) {
            Ok(map) => Self::check(map, version, key).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("it cannot be read: {error}")),
        }
    }

    /// Packed bytes as a container without a file.
    pub(crate) fn in_memory(packed: &[u8], version: &str, key: u128) -> Result<Self> {
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
        if found_checksum != hex(fingerprint(&map, tensors, &texts)) {
            return Err("its content does not match its checksum".to_owned());
        }
        Ok(Self { map, texts })
    }

    /// A text of the metadata.
    pub(crate) fn text(&self, name: &str) -> std::result::Result<&str, String> {
        self.texts.get(name).map(String::as_str).ok_or_else(|| format!("it has no {name:?} in its metadata"))
    }

    /// Hash of all names and tensors, without the texts: another file with the same content may name other sources.
    pub(crate) fn content(&self) -> u128 {
        let tensors = SafeTensors::deserialize(&self.map).map(|tensors| tensors.tensors()).unwrap_or_default();
        let tensors: BTreeMap<&str, &[u8]> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.data())).collect();
        fingerprint(&self.map, tensors, &BTreeMap::new())
    }

    /// Finds a tensor and checks its type and alignment.
    pub(crate) fn column<T: Number>(&self, name: &str) -> std::result::Result<Column<T>, String> {
        let tensors = SafeTensors::deserialize(&self.map).map_err(|error| error.to_string())?;
        let tensor = tensors.tensor(name).map_err(|_| format!("it has no tensor {name:?}"))?;
        if tensor.dtype() != T::DTYPE || <[T]>::ref_from_bytes(tensor.data()).is_err() {
            return Err(format!("its tensor {name:?} is not aligned {:?}", T::DTYPE));
        }
        let start = tensor.data().as_ptr().addr() - self.map.as_ptr().addr();
        Ok(Column { bytes: start..start + tensor.data().len(), number: PhantomData })
    }

    /// Releases the memory of elements that will not be needed soon.
    pub(crate) fn release<T: Number>(&self, column: &Column<T>, elements: Range<usize>) {
        self.map.release(self.values(column)[elements].as_bytes());
    }

    /// A tensor's elements, flat.
    pub(crate) fn values<T: Number>(&self, column: &Column<T>) -> &[T] {
        // `column` checked the cast, so the default is never used.
        <[T]>::ref_from_bytes(&self.map[column.bytes.clone()]).unwrap_or_default()
    }
}

/// A key as it is written in file names and metadata.
pub(super) fn hex(key: u128) -> String {
    format!("{key:032x}")
}

/// Warns that a cache file cannot be used and is made again.
pub(super) fn warn_unusable(path: &Path, why: &str) {
    tracing::warn!("{} is made again: {why}", path.display());
}

/// Hash of all names, tensors of `map` and texts. Releases the map's memory as soon as it is hashed.
fn fingerprint(map: &Map, tensors: BTreeMap<&str, &[u8]>, texts: &BTreeMap<String, String>) -> u128 {
    let mut hash = Fingerprint::default();
    for (name, bytes) in tensors {
        hash.add(name.as_bytes());
        hash.begin(bytes.len());
        for piece in bytes.chunks(PIECE) {
            hash.more(piece);
            map.release(piece);
        }
    }
    hash.of_texts(texts)
}

impl Fingerprint {
    fn of_texts(mut self, texts: &BTreeMap<String, String>) -> u128 {
        for (name, text) in texts {
            self.add(name.as_bytes());
            self.add(text.as_bytes());
        }
        self.done()
    }
}
