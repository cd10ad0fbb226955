//! `haf-dist prepare`: tokenizes the data and fills the caches that training would fill; creates no run folder.

use super::{alike, setup};
use crate::checkpoint::Changed;
use crate::comm::CommThread;
use crate::config::Config;
use crate::data::prepared::PreparedData;
use crate::data::report::DataReport;
use crate::engine::Engine;
use crate::error::Result;
use crate::machine::{Machine, kernels};
use crate::model::architecture::Architecture;
use crate::model::segment::Use;
use crate::model::weights::{LoadOptions, Model};
use crate::terminal;
use serde_json::json;

/// Runs the command on every rank.
///
/// # Errors
/// Bad data, a bad model, or a cache that cannot be written.
pub(crate) fn run(config: &Config, changed: Changed, json: bool, comm: &CommThread) -> Result<()> {
    let machine = Machine::pick(config.model.dtype, config.parallel.threads, comm)?;
    let origin = comm.agree(setup::origin(config))?;
    let check = comm.agree(setup::check_files(&origin, changed))?;
    alike::model(&origin, comm)?;
    let architecture = comm.agree(Architecture::open(&origin.base))?;
    kernels::settle(config.parallel.kernels, &architecture, &machine, comm)?;
    let encoder = comm.agree(setup::encoder(config, origin.tokenizer(), &architecture))?;
    let splits = setup::splits(config, &encoder, comm)?;
    let reports: Vec<DataReport> = splits.all().map(|data| data.report().clone()).collect();
    if config.loss.needs_reference() {
        let options =
            LoadOptions { kind: machine.kind, device: machine.device, purpose: Use::Evaluate, log_probs: true };
        let work = comm.at_work("loading the model");
        let mut model = comm.agree(Model::load(&origin.base, options))?;
        drop(work);
        setup::finish_check(check, comm)?;
        setup::share_weights(&mut model, comm)?;
        let mut engine = Engine::new(model, false)?;
        let mut sampler = comm.agree(setup::sampler(config, &splits.train))?;
        let model_key = setup::model_keys(&origin, comm)?.base;
        let cache = |data: &PreparedData| setup::reference_cache(model_key, data, config, &machine);
        setup::all_references(splits, &mut sampler, config, &mut engine, cache, comm)?;
    }
    if comm.rank() > 0 {
        return Ok(());
    }
    let folder = config.data.cache_dir.display();
    match json {
        true => terminal::out(json!({"prepare": folder.to_string(), "splits": reports})),
        false => terminal::out(format_args!("prepared in {folder}")),
    }
}
