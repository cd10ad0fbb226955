//! The libraries that the dynamic linker would load for the engine, and what follows from them: whether it computes on GPUs.

use super::{engine, libraries};
use crate::machine::cuda::CUDA;
use crate::machine::look;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A shared library that the engine needs.
#[derive(Debug, PartialEq)]
pub(crate) struct Library {
    pub(crate) name: String,
    /// Where the linker finds it.
    pub(crate) path: Option<PathBuf>,
}

/// The libraries that the dynamic linker would load for a program, as listed by `ldd`; before them those of `names` that the
/// program itself would find if it loaded them.
pub(crate) fn linked(program: &Path, names: &[String]) -> Vec<Library> {
    let variables = libraries::variables(program).unwrap_or_default();
    let mut command = Command::new(program);
    command.envs(variables).env("LD_TRACE_LOADED_OBJECTS", "1");
    if !names.is_empty() {
        command.env("LD_PRELOAD", names.join(":"));
    }
    let output = command.output();
    output.map(|output| listed(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

/// Reads lines such as `libmpi.so.40 => /usr/lib/libmpi.so.40 (0x...)` and `libc10.so => not found`.
fn listed(text: &str) -> Vec<Library> {
    let library = |line: &str| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let path = rest.split(" (").next().filter(|path| path.starts_with('/'));
        Some(Library { name: name.to_owned(), path: path.map(PathBuf::from) })
    };
    text.lines().filter_map(library).collect()
}

/// The path of the first library whose name starts like that.
pub(crate) fn found<'l>(libraries: &'l [Library], start: &str) -> Option<&'l Path> {
    libraries.iter().find(|library| library.name.starts_with(start))?.path.as_deref()
}

/// libtorch's folder.
pub(crate) fn folder_of_libtorch(libraries: &[Library]) -> Option<&Path> {
    found(libraries, "libtorch_cpu.so").and_then(Path::parent)
}

/// The GPUs that the engine would compute on, a line each as in [`look::gpus`]; None where it would compute on the processor.
pub(crate) fn gpus_in_use() -> Option<Vec<String>> {
    let shown = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let cards = look::gpus(shown.as_deref())?;
    let libraries = linked(&engine().ok()?, &[]);
    folder_of_libtorch(&libraries)?.join(CUDA).exists().then_some(cards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibmpi.so.40 => /usr/lib/libmpi.so.40 (0x2)\n\tlibc10.so => not found\n";
        let libraries = listed(text);
        assert_eq!(libraries.len(), 2);
        assert_eq!(found(&libraries, "libmpi.so"), Some(Path::new("/usr/lib/libmpi.so.40")));
        assert_eq!(found(&libraries, "libc10.so"), None);
    }
}
