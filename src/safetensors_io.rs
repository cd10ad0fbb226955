//! Tensors in the safetensors container: written straight from tensor memory, read from a memory map.
//!
//! Not here: which tensors a model or a checkpoint has, or what their names mean. The container: an 8-byte
//! little-endian header length, a JSON header (kind, shape and byte range of every tensor), then the bytes
//! (<https://huggingface.co/docs/safetensors>).

use crate::error::{Error, Result, file_error};
use crate::files::{self, Map as FileMap};
use crate::tensor::bytes;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The header length that comes first, in bytes; the header is padded to a multiple of it.
const LENGTH_BYTES: usize = 8;

/// Kinds that are written and read. Not bool: its bytes would have to be checked, and no parameter is one.
const KINDS: [(Kind, Dtype); 9] = [
    (Kind::Float, Dtype::F32),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Half, Dtype::F16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
];

/// A tensor to write: its header entry, and its values, which are made only when it is written.
pub struct Entry<'a> {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Makes the values, of that kind and shape.
    pub values: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

impl<'a> Entry<'a> {
    /// An existing tensor.
    pub fn of(name: &str, tensor: &'a Tensor) -> Self {
        let (kind, shape) = (tensor.kind(), tensor.size());
        Self { name: name.into(), kind, shape, values: Box::new(|| Ok(tensor.shallow_clone())) }
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<i64>() as usize * self.kind.elt_size_in_bytes()
    }
}

/// Writes `tensors` to a new file at `path` and returns when it is on the disk.
///
/// A contiguous CPU tensor is written from its own memory; others are copied one at a time. Tensors with wider elements
/// come first, so that every tensor is aligned to its element. `metadata` becomes the header's `__metadata__`
/// (Transformers wants `format = "pt"`). The same input gives the same bytes.
///
/// # Errors
/// A name that occurs twice, a kind the container lacks, values that differ from their entry, an existing `path`,
/// or a failed write.
pub fn write(path: &Path, tensors: &[Entry], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut order: Vec<&Entry> = tensors.iter().collect();
    order.sort_by_key(|entry| Reverse(entry.kind.elt_size_in_bytes()));

    let header = header(&order, metadata).map_err(|error| error.at(path.display()))?;
    let failed = |error: std::io::Error| file_error(path, "write", &error);
    let mut file = File::create_new(path).map_err(failed)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for entry in order {
        let tensor = (entry.values)()?;
        if (tensor.kind(), tensor.size()) != (entry.kind, entry.shape.clone()) {
            return Err(Error::runtime(format!(
                "{} is {tensor:?}, which is not what its header entry says",
                entry.name
            )));
        }
        // No copy if it is contiguous on the CPU.
        let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        file.write_all(&bytes(&tensor)?).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

/// [`write()`] for a model's tensors: Transformers and PEFT refuse a file that does not say `format = "pt"`.
///
/// # Errors
/// As [`write()`].
pub fn write_model(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let entries: Vec<Entry> = tensors.iter().map(|(name, tensor)| Entry::of(name, tensor)).collect();
    write_model_entries(path, &entries)
}

/// [`write_model`] for tensors that are made only when they are written.
///
/// # Errors
/// As [`write()`].
pub(crate) fn write_model_entries(path: &Path, tensors: &[Entry]) -> Result<()> {
    write(path, tensors, &BTreeMap::from([("format".into(), "pt".into())]))
}

fn header(tensors: &[&Entry], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut start = 0;
    for entry in tensors {
        let (name, kind) = (&entry.name, entry.kind);
        let dtype = KINDS.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype);
        let dtype =
            dtype.ok_or_else(|| Error::runtime(format!("tensor {name} has kind {kind:?}: cannot be written")))?;
        let end = start + entry.bytes();
        let described = json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [start, end] });
        if entries.insert(name.clone(), described).is_some() {
            return Err(Error::runtime(format!("two tensors are called {name}")));
        }
        start = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(LENGTH_BYTES), b' ');
    Ok(text)
}

/// A memory-mapped safetensors file: opening it reads only the header.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    memory: FileMap,
    /// Where the tensors' bytes start in the file.
    data_start: usize,
    metadata: Metadata,
}

impl Mapped {
    /// Maps a file and checks its header: that every tensor's shape fits its byte range, that the ranges follow one
    /// another without gap or overlap, and that the file ends where the last one does.
    ///
    /// # Errors
    /// [`Error::input`] that names the file and says what is wrong: missing, cut short, not safetensors.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| file_error(path, "open", &error);
        let memory = files::map(path).map_err(failed)?;
        let (header_length, metadata) =
            SafeTensors::read_metadata(&memory).map_err(|error| damaged(path, &memory, &error.to_string()))?;
        Ok(Self { path: path.into(), memory, data_start: LENGTH_BYTES + header_length, metadata })
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The header's text entries.
    pub fn metadata(&self) -> std::collections::HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    /// The tensors' names, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// [`Error::input`] if the file has no such tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<i64>> {
        let convert = |&size: &usize| i64::try_from(size).map_err(|_| self.wrong(name, "has a size beyond 2^63"));
        self.info(name)?.shape.iter().map(convert).collect()
    }

    /// A tensor's kind.
    ///
    /// # Errors
    /// [`Error::input`] if the file has no such tensor, or its kind is not supported (F8, bool ...).
    pub fn kind(&self, name: &str) -> Result<Kind> {
        let dtype = self.info(name)?.dtype;
        let kind = KINDS.iter().find(|(_, known)| *known == dtype).map(|(kind, _)| *kind);
        kind.ok_or_else(|| self.wrong(name, &format!("has elements of type {dtype}, which is not supported")))
    }

    /// The container's name for a tensor's kind, supported or not: `F32`, `F8_E4M3`.
    ///
    /// # Errors
    /// [`Error::input`] if the file has no such tensor.
    pub(crate) fn kind_name(&self, name: &str) -> Result<String> {
        self.info(name).map(|info| info.dtype.to_string())
    }

    /// A tensor's bytes, without a copy.
    ///
    /// # Errors
    /// [`Error::input`] if the file has no such tensor.
    pub(crate) fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (start, end) = self.info(name)?.data_offsets;
        // `open` has checked the ranges; a second look costs nothing and cannot panic.
        let data = self.memory.get(self.data_start + start..self.data_start + end);
        data.ok_or_else(|| self.wrong(name, "lies beyond the end of the file"))
    }

    /// A copy of a tensor: on the CPU, of the file's kind.
    ///
    /// # Errors
    /// As [`Self::kind`].
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let (data, shape, kind) = (self.bytes(name)?, self.shape(name)?, self.kind(name)?);
        // libtorch copies as many bytes as the shape says, whatever the slice holds.
        if shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes() != data.len() {
            return Err(self.wrong(name, "has a shape that does not fit its bytes"));
        }
        let copy = Tensor::f_from_data_size(data, &shape, kind)?;
        // Otherwise all files of a loaded model would count as this process's memory.
        self.memory.release(data);
        Ok(copy)
    }

    /// A copy of some rows of a tensor, taken as a matrix whose columns are its last dimension: [rows, columns].
    ///
    /// # Errors
    /// As [`Self::kind`], or rows that the tensor does not have.
    pub(crate) fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        let (data, shape, kind) = (self.bytes(name)?, self.shape(name)?, self.kind(name)?);
        let columns = shape.last().copied().unwrap_or(1);
        let row = columns as usize * kind.elt_size_in_bytes();
        let part = data.get(rows.start * row..rows.end * row);
        let part = part.ok_or_else(|| self.wrong(name, &format!("has no rows {rows:?}")))?;
        let copy = Tensor::f_from_data_size(part, &[rows.len() as i64, columns], kind)?;
        self.memory.release(part);
        Ok(copy)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata.info(name).ok_or_else(|| {
            Error::input(format!("{} has no tensor {name}", self.path.display())).hint("get or write it again")
        })
    }

    fn wrong(&self, name: &str, what: &str) -> Error {
        Error::input(format!("{}: tensor {name} {what}", self.path.display()))
            .hint("write the file again, with tensors of a plain kind such as f32, f16 or bf16")
    }
}

/// The error for a file that is not a whole safetensors file, with numbers that the library's message lacks.
fn damaged(path: &Path, file: &[u8], reason: &str) -> Error {
    let (length, path) = (file.len(), path.display());
    if file.starts_with(b"version https://git-lfs") {
        return Error::input(format!("{path} is a Git LFS pointer, not the safetensors file itself"))
            .hint("run `git lfs pull` in the folder it came from");
    }
    let declared = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let what = match declared {
        None => format!("it has {length} bytes, too few for a header"),
        Some(declared) if declared > (length - LENGTH_BYTES) as u64 => {
            format!("its header should have {declared} bytes, but the file has {length} in all")
        }
        Some(_) => format!("{reason} (the file has {length} bytes)"),
    };
    Error::input(format!("{path} is not a whole safetensors file: {what}"))
        .hint("it was cut short or is of another format: get or write it again")
}
