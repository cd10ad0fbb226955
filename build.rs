//! Lets the binary and the tests find libtorch at run time without LD_LIBRARY_PATH, and tells the program a hash of the
//! sources it is built from: ranks of different programs must notice.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!("cargo:rustc-env=HAF_DIST_SOURCES={:016x}", hash_of_sources());
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        // Nothing names a symbol of libtorch_cuda, so the linker would drop it, and libtorch would see no GPU.
        if std::path::Path::new(&folder).join("libtorch_cuda.so").exists() {
            for argument in ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"] {
                println!("cargo:rustc-link-arg={argument}");
            }
        }
    }
}

/// FNV-1a over names and contents of src/ and Cargo.lock. What cannot be read counts as empty: the build itself will say so.
fn hash_of_sources() -> u64 {
    let mut files = vec![PathBuf::from("Cargo.lock")];
    collect(Path::new("src"), &mut files);
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let content = std::fs::read(&file).unwrap_or_default();
        for byte in file.to_string_lossy().bytes().chain(content).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
