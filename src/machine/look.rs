//! What the machine has, according to its file systems and `nvidia-smi`: nothing is computed and no library is loaded.
//!
//! Not here: the device that the engine picks (`mod.rs`).

use nix::sys::statvfs::statvfs;
use std::path::Path;
use std::process::Command;

/// The driver's GPUs, a line each with name, memory and driver version; None if nvidia-smi is missing or finds none. Those of a
/// `CUDA_VISIBLE_DEVICES` alone if it is given, which nvidia-smi itself does not heed.
pub(crate) fn gpus(shown: Option<&str>) -> Option<Vec<String>> {
    if hides_gpus(shown) {
        return None;
    }
    let id = shown.map(|shown| format!("--id={}", shown.trim()));
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    let of_shown = id.as_deref().and_then(|id| nvidia_smi(&[query[0], query[1], id]));
    // CUDA takes more spellings than nvidia-smi, such as parts of a GPU.
    let text = of_shown.or_else(|| nvidia_smi(&query))?;
    let cards: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    (!cards.is_empty()).then_some(cards)
}

/// Whether this value of `CUDA_VISIBLE_DEVICES` hides every GPU.
pub(crate) fn hides_gpus(shown: Option<&str>) -> bool {
    shown.is_some_and(|shown| ["", "-1", "NoDevFiles"].contains(&shown.trim()))
}

/// Pairs of GPUs that NVLink connects.
pub(crate) fn nvlinks() -> usize {
    nvlinks_in(&nvidia_smi(&["topo", "-m"]).unwrap_or_default())
}

fn nvlinks_in(matrix: &str) -> usize {
    let rows = matrix.lines().filter(|line| line.starts_with("GPU"));
    let words = rows.flat_map(|row| row.split_whitespace().skip(1));
    let links = words.filter(|word| word.strip_prefix("NV").is_some_and(|count| count.parse::<u32>().is_ok()));
    links.count() / 2
}

fn nvidia_smi(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nvidia-smi").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Bytes that this user may still write to the file system of a folder; None if the system does not say.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let system = statvfs(folder).ok()?;
    Some(system.blocks_available() * system.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::nvlinks_in;

    #[test]
    fn links_are_counted_once_a_pair() {
        let matrix =
            "\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV18\tSYS\t0-55\nGPU1\tNV18\t X \tSYS\t0-55\nGPU2\tSYS\tSYS\t X \t0-55\n";
        assert_eq!(nvlinks_in(matrix), 1);
        assert_eq!(nvlinks_in(""), 0);
    }
}
