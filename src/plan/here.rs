//! This computer as the planned device: the memory that a rank may fill, and the precision it computes in.
//!
//! The only file of `plan/` that looks at the machine. Not here: devices known from data sheets (`hardware.rs`).

use super::Job;
use super::hardware::{self, Hardware, RESERVE};
use super::memory::Memory;
use super::workload;
use crate::config::{Config, Dtype};
use crate::error::{Error, Result};
use crate::machine::{self, Machine};
use crate::model::architecture::Architecture;
use tch::Kind;

/// The device with that name, or this computer's processor for [`hardware::CPU`], for `ranks` ranks of this config; and the
/// kind that `model.dtype` means there.
///
/// # Errors
/// An unknown name; a system without Linux's /proc.
pub(crate) fn named(name: &str, ranks: usize, config: &Config) -> Result<(Hardware, Kind)> {
    if name != hardware::CPU {
        let kind = kind_on_gpu(config);
        return Ok((hardware::gpu(name, kind == Kind::BFloat16)?, kind));
    }
    let kind = kind_on_processor(config);
    let threads = match config.parallel.threads {
        0 => (machine::usable_cores() / ranks).max(1),
        threads => threads,
    };
    Ok((hardware::cpu(ranks, threads, memory_of_this_computer()?, kind == Kind::BFloat16), kind))
}

/// The device that a benchmark runs on, if its memory can be compared with the plan's: None on a GPU. Its memory size is left at
/// 0, since whether the job fits is not asked here.
pub(crate) fn running(machine: &Machine, ranks: usize) -> Option<Hardware> {
    machine.is_cpu().then(|| hardware::cpu(ranks, machine.threads, 0.0, machine.kind == Kind::BFloat16))
}

/// The memory that a rank needs and may fill on a device, in bytes.
pub(crate) struct Room {
    /// Needed at the worst moment, by a full micro-batch or a pair of two longest sequences.
    pub(crate) needed: f64,
    /// A rank may fill this much.
    pub(crate) usable: f64,
    /// A GPU's name, or "this computer".
    pub(crate) device: String,
}

impl Room {
    /// `a rank needs 1.2 GB and may fill 7.6 GB of this computer`.
    pub(crate) fn described(&self) -> String {
        let Self { needed, usable, device } = self;
        format!("a rank needs {:.1} GB and may fill {:.1} GB of {device}", needed / 1e9, usable / 1e9)
    }
}

/// What each of `ranks` ranks needs and may fill in this computer's own memory.
///
/// # Errors
/// An adapter on a projection that the model does not have; a system without Linux's /proc.
pub(crate) fn on_processor(config: &Config, architecture: &Architecture, ranks: usize) -> Result<Room> {
    let kind = kind_on_processor(config);
    let job = Job::new(config, architecture.clone(), kind)?;
    let hardware = hardware::cpu(ranks, 1, memory_of_this_computer()?, kind == Kind::BFloat16);
    let needed = Memory::on(&hardware, &job, &workload::longest(config), ranks).total() as f64;
    Ok(Room { needed, usable: hardware.usable_memory(), device: "this computer".to_owned() })
}

/// The same on the first of `cards` if ranks compute on GPUs, a rank each; None if the machine does not say how much memory it
/// has. A card is "NVIDIA H100 80GB HBM3, 81559 MiB, 580.65".
///
/// # Errors
/// An adapter on a projection that the model does not have.
pub(crate) fn on_first_device(
    config: &Config,
    architecture: &Architecture,
    ranks: usize,
    cards: Option<&[String]>,
) -> Result<Option<Room>> {
    let Some(cards) = cards else {
        // Built for its errors alone: the `ok()` below would hide them.
        Job::new(config, architecture.clone(), kind_on_processor(config))?;
        return Ok(on_processor(config, architecture, ranks).ok());
    };
    let job = Job::new(config, architecture.clone(), kind_on_gpu(config))?;
    let multiprocessors = hardware::multiprocessors(cards.first().map_or("", String::as_str));
    let needed = Memory::of(&job, &workload::longest(config), Some(multiprocessors), ranks).total() as f64;
    let mut fields = cards.first().map(String::as_str).unwrap_or_default().split(", ");
    let (name, memory) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let mebibytes = memory.strip_suffix(" MiB").and_then(|number| number.parse::<f64>().ok());
    Ok(mebibytes.map(|mebibytes| {
        let usable = mebibytes * (1 << 20) as f64 * (1.0 - RESERVE);
        Room { needed, usable, device: name.to_owned() }
    }))
}

/// What `model.dtype` means on this computer.
pub(crate) fn kind(config: &Config, on_gpu: bool) -> Kind {
    if on_gpu { kind_on_gpu(config) } else { kind_on_processor(config) }
}

fn kind_on_gpu(config: &Config) -> Kind {
    if config.model.dtype == Dtype::F32 { Kind::Float } else { Kind::BFloat16 }
}

fn kind_on_processor(config: &Config) -> Kind {
    match config.model.dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::Auto if machine::processor_has_bf16() => Kind::BFloat16,
        Dtype::F32 | Dtype::Auto => Kind::Float,
    }
}

/// Bytes of physical memory.
fn memory_of_this_computer() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.map(|kib: f64| 1024.0 * kib).ok_or_else(|| {
        Error::runtime("/proc/meminfo does not say how much memory there is").hint("plan for a GPU with --gpu NAME")
    })
}
