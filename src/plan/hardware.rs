//! Hardware figures from data sheets, and the shares of them that a run is assumed to reach.
//!
//! Not here: the memory and time that a run needs (`memory.rs`, `time.rs`).

use crate::error::{Error, Result};
use serde::Serialize;

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// Share of a link's or a memory's bandwidth that large transfers are assumed to reach.
pub(crate) const BANDWIDTH_SHARE: f64 = 0.8;

/// Share of a GPU's memory left free for fragmentation and the driver.
pub(crate) const RESERVE: f64 = 0.05;

/// One rank's device and its links to others. All figures are one direction, per GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hardware {
    /// Its name on the command line.
    pub name: String,
    /// Whether ranks share a computer's cores and memory instead of holding a GPU each.
    pub cpu: bool,
    /// Dense product rate in the compute precision, FLOP/s: the data sheet's peak.
    pub peak: f64,
    /// Share of the peak that a step's matrix products are assumed to reach, with all work between them counted in.
    pub attainable: f64,
    /// Multiprocessors; 0 on a CPU.
    pub multiprocessors: usize,
    /// Memory in bytes.
    pub memory: f64,
    /// Memory bandwidth in bytes/s.
    pub memory_bandwidth: f64,
    /// Bandwidth between GPUs of a node in bytes/s.
    pub link: f64,
    /// GPUs in a node.
    pub per_node: usize,
    /// Bandwidth between nodes in bytes/s: an assumption, since it depends on the cluster and not on the GPU.
    pub network: f64,
    /// Seconds between the starts of two kernels: small kernels do not run faster than they are started.
    pub launch: f64,
    /// Seconds that a small message takes for one hop within a node.
    pub link_latency: f64,
    /// Seconds that a small message takes for one hop between nodes.
    pub network_latency: f64,
    /// Whether reductions overlap with the computation. On a CPU they take its cores.
    pub overlaps: bool,
}

/// A GPU's data sheet.
struct Sheet {
    names: &'static [&'static str],
    /// Dense TFLOP/s: bf16 with f32 sums, and plain f32 (libtorch leaves TF32 off by default).
    bf16: f64,
    f32: f64,
    multiprocessors: usize,
    memory_gib: f64,
    /// GB/s.
    memory_bandwidth: f64,
    link: f64,
    per_node: usize,
    network: f64,
    attainable: f64,
}

/// Multiprocessors are those of the architectures' white papers. Links count one direction. Networks are those of the usual server: 400 Gb/s a GPU with H100 and H200 (DGX H100 data
/// sheet), 200 Gb/s with A100 (DGX A100 data sheet), one 100 Gb/s card for four PCIe cards (assumed).
const SHEETS: &[Sheet] = &[
    // NVIDIA H100 Tensor Core GPU data sheet, SXM column; NVLink 900 GB/s in both directions together.
    Sheet {
        names: &["h100", "h100-sxm"],
        bf16: 989.4,
        f32: 66.9,
        multiprocessors: 132,
        memory_gib: 80.0,
        memory_bandwidth: 3350.0,
        link: 450.0,
        per_node: 8,
        network: 50.0,
        attainable: 0.40,
    },
    // NVIDIA H200 Tensor Core GPU data sheet, SXM column.
    Sheet {
        names: &["h200", "h200-sxm"],
        bf16: 989.4,
        f32: 66.9,
        multiprocessors: 132,
        memory_gib: 140.0,
        memory_bandwidth: 4800.0,
        link: 450.0,
        per_node: 8,
        network: 50.0,
        attainable: 0.40,
    },
    // NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM column; NVLink 600 GB/s in both directions together.
    Sheet {
        names: &["a100", "a100-80"],
        bf16: 312.0,
        f32: 19.5,
        multiprocessors: 108,
        memory_gib: 80.0,
        memory_bandwidth: 2039.0,
        link: 300.0,
        per_node: 8,
        network: 25.0,
        attainable: 0.45,
    },
    // The same, 40 GB.
    Sheet {
        names: &["a100-40"],
        bf16: 312.0,
        f32: 19.5,
        multiprocessors: 108,
        memory_gib: 40.0,
        memory_bandwidth: 1555.0,
        link: 300.0,
        per_node: 8,
        network: 25.0,
        attainable: 0.45,
    },
    // NVIDIA L40S data sheet; PCIe 4.0 x16 is 64 GB/s in both directions together.
    Sheet {
        names: &["l40s"],
        bf16: 362.05,
        f32: 91.6,
        multiprocessors: 142,
        memory_gib: 48.0,
        memory_bandwidth: 864.0,
        link: 32.0,
        per_node: 4,
        network: 3.125,
        attainable: 0.40,
    },
    // NVIDIA Ada GPU architecture white paper, GeForce RTX 4090; half of PCIe's bandwidth, as these cards exchange
    // through the host's memory.
    Sheet {
        names: &["rtx4090", "4090"],
        bf16: 165.2,
        f32: 82.6,
        multiprocessors: 128,
        memory_gib: 24.0,
        memory_bandwidth: 1008.0,
        link: 16.0,
        per_node: 4,
        network: 3.125,
        attainable: 0.40,
    },
];

/// Name of the computer the command runs on.
pub(crate) const CPU: &str = "cpu";

/// Rate of matrix products of one CPU thread in FLOP/s, bf16 and f32: measured with libtorch on one core of the machine that
/// docs/internals.md's figures are from (AMD EPYC, family 25 model 17, with AVX512-BF16). `--flops` sets another.
const CPU_RATES: [f64; 2] = [200e9, 95e9];

/// The GPU with that name, computing in bf16 or else in f32.
///
/// # Errors
/// An unknown name; the hint lists the known ones.
pub fn gpu(name: &str, bf16: bool) -> Result<Hardware> {
    let sheet = SHEETS.iter().find(|sheet| sheet.names.contains(&name)).ok_or_else(|| {
        Error::input(format!("--gpu {name}: not known"))
            .hint(format!("known: {}, {CPU}; --mfu, --flops and --network adapt the nearest one", names().join(", ")))
    })?;
    Ok(Hardware {
        name: sheet.names[0].to_string(),
        cpu: false,
        peak: 1e12 * if bf16 { sheet.bf16 } else { sheet.f32 },
        attainable: sheet.attainable,
        multiprocessors: sheet.multiprocessors,
        memory: sheet.memory_gib * GIB,
        memory_bandwidth: 1e9 * sheet.memory_bandwidth,
        link: 1e9 * sheet.link,
        per_node: sheet.per_node,
        network: 1e9 * sheet.network,
        launch: 6e-6,
        link_latency: 3e-6,
        network_latency: 6e-6,
        overlaps: true,
    })
}

/// Ranks of `threads` threads each that share one computer with `memory` bytes.
pub fn cpu(ranks: usize, threads: usize, memory: f64, bf16: bool) -> Hardware {
    let [bf16_rate, f32_rate] = CPU_RATES;
    Hardware {
        name: CPU.to_string(),
        cpu: true,
        peak: threads as f64 * if bf16 { bf16_rate } else { f32_rate },
        // Measured on the same machine: 0.85 to 0.9.
        attainable: 0.85,
        multiprocessors: 0,
        memory: memory / ranks as f64,
        // Assumed for a server's share of a memory channel.
        memory_bandwidth: 20e9,
        link: 5e9,
        per_node: ranks,
        network: 1.25e9,
        launch: 0.0,
        link_latency: 2e-6,
        network_latency: 30e-6,
        overlaps: false,
    }
}

/// Multiprocessors of the GPU that the driver calls `name`, such as "NVIDIA A100-SXM4-80GB"; of an H100 if it is not known.
pub fn multiprocessors(name: &str) -> usize {
    let name = name.to_lowercase().replace(' ', "");
    let sheet = SHEETS.iter().find(|sheet| sheet.names.iter().any(|known| name.contains(known)));
    sheet.map_or(132, |sheet| sheet.multiprocessors)
}

/// The names of the known GPUs, one each.
pub fn names() -> Vec<&'static str> {
    SHEETS.iter().map(|sheet| sheet.names[0]).collect()
}

impl Hardware {
    /// Rate that a step is assumed to reach, FLOP/s.
    pub(crate) fn rate(&self) -> f64 {
        self.peak * self.attainable
    }

    /// Memory that a rank may fill, in bytes.
    pub fn usable_memory(&self) -> f64 {
        self.memory * (1.0 - RESERVE)
    }

    /// Seconds for an all-reduce of `bytes` over `ranks`: reduce-scatter within each node, ring all-reduce of the parts
    /// between nodes, all-gather within each node. A ring of n moves 2 (n - 1) / n of the bytes past every rank; small
    /// messages take a tree's number of hops, as NCCL arranges them.
    pub fn all_reduce(&self, ranks: usize, bytes: f64) -> f64 {
        let within = ranks.min(self.per_node).max(1);
        let nodes = ranks.div_ceil(within);
        let ring = |ranks: usize| 2.0 * (ranks as f64 - 1.0) / ranks as f64;
        let hops = |ranks: usize| 2.0 * f64::from(ranks.next_power_of_two().ilog2());
        ring(within) * bytes / (self.link * BANDWIDTH_SHARE)
            + ring(nodes) * bytes / within as f64 / (self.network * BANDWIDTH_SHARE)
            + hops(within) * self.link_latency
            + hops(nodes) * self.network_latency
    }

    /// Seconds to move `bytes` through the memory.
    pub(crate) fn stream(&self, bytes: f64) -> f64 {
        bytes / (self.memory_bandwidth * BANDWIDTH_SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_all_reduce_takes_what_the_ring_formula_says_within_and_between_nodes() {
        let quick = Hardware { link_latency: 0.0, network_latency: 0.0, ..gpu("h100", true).unwrap() };
        assert_eq!(quick.all_reduce(1, 1e9), 0.0);
        let near = |seconds: f64, expected: f64| assert!((seconds / expected - 1.0).abs() < 1e-12, "{seconds}");
        near(quick.all_reduce(8, 3.6e9), 2.0 * 7.0 / 8.0 * 3.6e9 / (0.8 * 450e9));
        near(quick.all_reduce(16, 3.6e9), 1.75 * 3.6e9 / (0.8 * 450e9) + 3.6e9 / 8.0 / (0.8 * 50e9));
        assert!(gpu("h100", true).unwrap().all_reduce(1024, 0.0) > 0.0, "latency is counted");
    }

    #[test]
    fn the_drivers_name_tells_how_many_multiprocessors_there_are() {
        let names = ["NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3", "NVIDIA T4"];
        assert_eq!(names.map(multiprocessors), [108, 128, 132, 132]);
    }

    #[test]
    fn an_unknown_gpu_is_told_which_are_known() {
        let error = gpu("h1000", true).unwrap_err();
        let hint = error.hint.unwrap();
        assert!(names().iter().chain([&CPU]).all(|name| hint.contains(name)), "{hint}");
    }
}
