//! Keys of TRL, PEFT, Transformers and LLaMA-Factory: those with the same meaning as a key here, and those without a
//! counterpart, each with a reason.
//!
//! Also words that stand for something here that has another form. Not here: keys that `haf-dist init --from` must convert
//! (`commands/init/`), and names that a config may use as they are (`words.rs`).

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    /// A number.
    Number,
    /// A whole number, 1 or more.
    Count,
    /// True or false.
    Truth,
}

/// Keys, and the keys here with the same meaning.
pub(crate) const SAME: &[(&str, &str, Is)] = &[
    ("learning_rate", "train.learning_rate", Is::Number),
    ("weight_decay", "train.weight_decay", Is::Number),
    ("adam_beta1", "train.adam_beta1", Is::Number),
    ("adam_beta2", "train.adam_beta2", Is::Number),
    ("adam_epsilon", "train.adam_epsilon", Is::Number),
    ("max_grad_norm", "train.clip_norm", Is::Number),
    ("gradient_checkpointing", "train.activation_checkpointing", Is::Truth),
    ("activation_checkpointing", "train.activation_checkpointing", Is::Truth),
    ("save_total_limit", "checkpoint.keep", Is::Count),
];

/// Keys that need no counterpart if they have this value, since haf-dist always behaves that way.
pub(crate) const SO_HERE: &[(&str, &str, &str)] = &[
    ("disable_dropout", "true", "there is no dropout here"),
    ("lora_dropout", "0", "there is no dropout here"),
    ("bias", "\"none\"", "adapters have no biases here"),
    ("use_dora", "false", "there is only plain LoRA here"),
    ("load_in_4bit", "false", "weights are not quantized here"),
    ("load_in_8bit", "false", "weights are not quantized here"),
    ("fp16", "false", "there is no fp16 here"),
    ("streaming", "true", "files are always read as a stream"),
    ("overwrite_output_dir", "false", "a run's folder is never overwritten"),
    ("precompute_ref_log_probs", "true", "the reference's log-probs are always computed before training"),
    ("num_labels", "1", "a reward head has one output"),
    ("do_train", "true", "that is what train does"),
    ("remove_unused_columns", "false", "keys that are not used are listed in the data report"),
    ("packing", "true", "sequences are always packed without padding"),
    ("inference_mode", "false", "adapters are trained"),
    ("lora_task_type", "\"SEQ_CLS\"", "a reward head is trained with the adapters in any case"),
];

const LOGS: &str = "every step's figures go into metrics.jsonl";
const TRACKERS: &str = "no tracker is called: metrics.jsonl holds all figures";
const HUB: &str = "nothing is uploaded: haf-dist export writes a folder for that";
const LOADER: &str = "tokens are read from a mapped file, without workers";
const SHARDS: &str = "weights are whole on every rank; parallel.shard_optimizer = true shards masters and moments";
const DDP: &str = "gradients are reduced by [parallel]'s backend";
const KERNELS: &str = "the program has kernels of its own";
const COMMAND: &str = "set on the command line: haf-dist train, with --resume to continue";
const LORA_ONLY: &str = "there is only plain LoRA here";
const QUANTIZED: &str = "there is no quantization here, of trained or frozen weights";
const ADAMW: &str = "AdamW is the optimizer here";
const OTHER_STAGE: &str = "belongs to another stage";
const BEST: &str = "the checkpoint that is best on the dev pairs is always kept";

/// Keys without a counterpart, and why.
pub(crate) const NOTHING: &[(&str, &str)] = &[
    ("log_level", "HAF_LOG sets what is logged"),
    ("plot_loss", LOGS),
    ("disable_tqdm", "the bar is drawn only on terminals"),
    ("report_to", TRACKERS),
    ("run_name", TRACKERS),
    ("project", TRACKERS),
    ("push_to_hub", HUB),
    ("dataloader_drop_last", "the last batch of an epoch is trained on, however small"),
    ("dataset_num_proc", "as many threads as there are cores tokenize"),
    ("preprocessing_num_workers", "as many threads as there are cores tokenize"),
    ("overwrite_cache", "a cache is found by a hash of its content"),
    ("remove_unused_columns", "keys that are not used are listed in the data report"),
    ("deepspeed", SHARDS),
    ("parallelism_config", SHARDS),
    ("accelerator_config", DDP),
    ("ddp_timeout", "parallel.timeout_seconds has another meaning: it limits a wait without progress"),
    ("local_rank", DDP),
    ("attn_implementation", KERNELS),
    ("flash_attn", KERNELS),
    ("use_liger_kernel", KERNELS),
    ("enable_liger_kernel", KERNELS),
    ("tf32", KERNELS),
    ("use_cpu", "a GPU is used if there is one"),
    ("torch_empty_cache_steps", KERNELS),
    ("padding_free", "sequences are always packed without padding"),
    ("pad_to_multiple_of", "sequences are always packed without padding"),
    ("group_by_length", "sequences are always packed without padding"),
    ("train_sampling_strategy", "pairs are drawn by a seeded shuffle"),
    ("gradient_checkpointing_kwargs", "there is one kind of recomputation here"),
    ("activation_offloading", "activations stay on the device; train.activation_checkpointing saves memory"),
    ("auto_find_batch_size", "train.tokens_per_micro_batch bounds the memory, and changes no result"),
    ("per_device_eval_batch_size", "train.tokens_per_micro_batch bounds the memory, and changes no result"),
    ("precompute_ref_batch_size", "train.tokens_per_micro_batch bounds the memory, and changes no result"),
    ("eval_on_start", "the first evaluation comes after eval.every steps"),
    ("eval_delay", "the first evaluation comes after eval.every steps"),
    ("load_best_model_at_end", BEST),
    ("metric_for_best_model", BEST),
    ("greater_is_better", BEST),
    ("save_only_model", "a checkpoint holds what --resume needs; haf-dist export leaves it out"),
    ("save_safetensors", "everything is written as safetensors"),
    ("overwrite_output_dir", "a run's folder is never overwritten: name another in output.dir"),
    ("do_train", COMMAND),
    ("stage", "loss.objective sets it"),
    ("do_eval", COMMAND),
    ("do_predict", COMMAND),
    ("resume_from_checkpoint", COMMAND),
    ("trust_remote_code", "code in a model's folder is never run: haf-dist models lists the families"),
    ("num_labels", "a reward head has one output"),
    ("lora_task_type", "a reward head is trained with the adapters in any case"),
    ("lora_dropout", "adapters have no dropout here: the run is not quite the same"),
    ("use_dora", LORA_ONLY),
    ("lora_target_parameters", LORA_ONLY),
    ("bias", LORA_ONLY),
    ("init_lora_weights", "A starts with Kaiming's uniform distribution, B at zero"),
    ("modules_to_save", "only the reward head is trained along with adapters"),
    ("layers_to_transform", "every block has adapters"),
    ("rank_pattern", LORA_ONLY),
    ("alpha_pattern", LORA_ONLY),
    ("loraplus_lr_ratio", LORA_ONLY),
    ("additional_target", "only the reward head is trained along with adapters"),
    ("load_in_4bit", QUANTIZED),
    ("load_in_8bit", QUANTIZED),
    ("quantization_bit", QUANTIZED),
    ("quantization_config", QUANTIZED),
    ("bnb_4bit_quant_type", QUANTIZED),
    ("bnb_4bit_quant_storage", QUANTIZED),
    ("use_bnb_nested_quant", QUANTIZED),
    ("neftune_noise_alpha", "embeddings get no noise here"),
    ("label_smoothing_factor", "it smooths a loss on tokens; loss.label_smoothing smooths that on pairs"),
    ("router_aux_loss_coef", "another loss than loss.router_balance, whose weights are not comparable"),
    ("sync_ref_model", "the reference is the model that training starts from"),
    ("ref_model_mixup_alpha", "the reference is the model that training starts from"),
    ("ref_model_sync_steps", "the reference is the model that training starts from"),
    ("ref_model", "the reference is the model that training starts from"),
    ("model_init_kwargs", "name the model's folder or revision in model.path"),
    ("chat_template_path", "put the template into the model's folder, as chat_template.jinja"),
    ("eos_token", "the EOS is found from the chat template"),
    ("pad_token", "sequences are always packed without padding"),
    ("truncation_mode", "the prompt's start is cut first, then the answer's end"),
    ("full_determinism", "a run with the same ranks is the same, bit for bit"),
    ("pref_ftx", "loss.policy is one loss, not a sum: \"sft\" would replace the preference loss"),
    ("use_weighting", "there is no such weighting of pairs here"),
    ("f_divergence_type", "there is only DPO's own divergence here"),
    ("ld_alpha", "every token of an answer has the same weight"),
    ("tokenized_path", "data.cache_dir holds tokens, and is filled automatically"),
    ("mix_strategy", "a source's weight sets how often it is drawn"),
    ("interleave_probs", "a source's weight sets how often it is drawn"),
    ("ignore_bias_buffers", DDP),
    ("dataset_streaming", "files are always read as a stream"),
    ("streaming", "files are always read as a stream"),
    ("optim", ADAMW),
    ("optim_args", ADAMW),
    ("optim_target_modules", ADAMW),
    ("lr_scheduler_kwargs", "the three schedules have no settings"),
    ("average_tokens_across_devices", "a loss is a mean over pairs, whatever the number of ranks"),
    ("bf16_full_eval", "evaluations compute in model.dtype"),
    ("fp16_full_eval", "evaluations compute in model.dtype"),
    ("activation_checkpointing_kwargs", "there is one kind of recomputation here"),
    ("use_cache", "nothing is generated"),
    ("ignore_data_skip", COMMAND),
    ("length_column_name", "sequences are always packed without padding"),
    ("skip_memory_metrics", LOGS),
    ("loss_weights", "loss.policy is one loss; loss.alpha and loss.reward_weight weigh the two heads' losses"),
    ("f_alpha_divergence_coef", "there is only DPO's own divergence here"),
    ("discopop_tau", "belongs to discopop, which is not a loss here"),
    ("exclude_modules", "lora.targets names the modules with adapters"),
    ("fan_in_fan_out", "weights have the layout of Transformers' linear layers"),
    ("use_qalora", LORA_ONLY),
    ("lora_bias", LORA_ONLY),
    ("layer_replication", LORA_ONLY),
    ("loftq_config", LORA_ONLY),
    ("eva_config", LORA_ONLY),
    ("trainable_token_indices", LORA_ONLY),
    ("layers_pattern", LORA_ONLY),
    ("corda_config", LORA_ONLY),
    ("lora_ga_config", LORA_ONLY),
    ("velora_config", LORA_ONLY),
    ("monteclora_config", LORA_ONLY),
    ("arrow_config", LORA_ONLY),
    ("kasa_config", LORA_ONLY),
    ("use_bdlora", LORA_ONLY),
    ("alora_invocation_tokens", LORA_ONLY),
    ("qalora_group_size", LORA_ONLY),
    ("target_parameters", LORA_ONLY),
    ("loraplus_lr_embedding", LORA_ONLY),
    ("ensure_weight_tying", "a tied head stays tied"),
    ("runtime_config", KERNELS),
    ("adapter_name_or_path", "name the adapter's folder in model.path to continue its training"),
    ("create_new_adapter", "an adapter in model.path is trained further; without one a new one is trained"),
    ("torch_compile", KERNELS),
    ("torch_compile_backend", KERNELS),
    ("torch_compile_mode", KERNELS),
    ("fsdp", SHARDS),
    ("fsdp_config", SHARDS),
    ("debug", COMMAND),
    ("label_names", "a pair is its label"),
    ("prediction_loss_only", LOGS),
    ("include_for_metrics", LOGS),
    ("batch_eval_metrics", LOGS),
    ("include_num_input_tokens_seen", LOGS),
    ("include_effective_tokens_per_second", LOGS),
    ("compute_accuracy", LOGS),
    ("print_param_status", LOGS),
    ("save_on_each_node", "rank 0 writes the checkpoints, on a disk that all nodes see"),
    ("enable_jit_checkpoint", "SIGTERM saves a checkpoint after the current step"),
    ("restore_callback_states_from_checkpoint", COMMAND),
    ("data_dir", "name the file in a source's path"),
    ("media_dir", "only texts are trained on"),
    ("train_on_prompt", "losses are computed only on answers"),
    ("mask_history", "losses are computed only on the last answer"),
    ("ignore_pad_token_for_loss", "sequences are always packed without padding"),
    ("neat_packing", "sequences are always packed, and never see one another"),
    ("buffer_size", "pairs are drawn by a seeded shuffle of all of them"),
    ("preprocessing_batch_size", "as many threads as there are cores tokenize"),
    ("data_shared_file_system", "rank 0 fills data.cache_dir; ranks that do not see it fill their own"),
    ("tool_format", "the chat template writes a row's tools"),
    ("default_system", "put a system message into the rows"),
    ("enable_thinking", "set it in a row's chat_template_kwargs"),
    ("preserve_thinking", "set it in a row's chat_template_kwargs"),
    ("early_stopping_steps", BEST),
    ("cache_dir", "HF_HUB_CACHE sets the folder for hf:// paths; data.cache_dir holds tokens"),
    ("use_fast_tokenizer", "tokenizer.json is read"),
    ("resize_vocab", "resize the embedding in the model's folder"),
    ("add_tokens", "add tokens in the model's folder"),
    ("add_special_tokens", "add tokens in the model's folder"),
    ("new_special_tokens_config", "add tokens in the model's folder"),
    ("init_special_tokens", "add tokens in the model's folder"),
    ("split_special_tokens", "special tokens in a text are special tokens, as in Transformers"),
    ("low_cpu_mem_usage", "weights are read from mapped files"),
    ("rope_scaling", "it is read from the model's config.json"),
    ("moe_aux_loss_coef", "another loss than loss.router_balance, whose weights are not comparable"),
    ("shift_attn", KERNELS),
    ("mixture_of_depths", KERNELS),
    ("upcast_layernorm", "norms compute in f32"),
    ("upcast_lmhead_output", "log-probs are summed in f32"),
    ("use_reentrant_gc", "there is one kind of recomputation here"),
    ("train_from_scratch", "training starts from the weights in model.path"),
    ("double_quantization", QUANTIZED),
    ("ref_model_adapters", "the reference is the model that training starts from"),
    ("pref_bco_weight", "loss.policy is one loss"),
];

/// Prefixes of further such keys.
pub(crate) const FAMILIES: &[(&str, &str)] = &[
    ("hub_", HUB),
    ("trackio_", TRACKERS),
    ("wandb", TRACKERS),
    ("swanlab_", TRACKERS),
    ("use_swanlab", TRACKERS),
    ("dataloader_", LOADER),
    ("ddp_", DDP),
    ("logging_", LOGS),
    ("log_", LOGS),
    ("liger_", KERNELS),
    ("fsdp", SHARDS),
    ("torch_compile", KERNELS),
    ("quantization_", QUANTIZED),
    ("pissa_", "A starts with Kaiming's uniform distribution, B at zero"),
    ("oft_", LORA_ONLY),
    ("freeze_", "every weight is trained, or adapters are"),
    ("galore_", ADAMW),
    ("apollo_", ADAMW),
    ("badam_", ADAMW),
    ("use_galore", ADAMW),
    ("use_apollo", ADAMW),
    ("use_badam", ADAMW),
    ("use_adam_mini", ADAMW),
    ("use_muon", ADAMW),
    ("use_unsloth", KERNELS),
    ("ray_", COMMAND),
    ("fp8", "there is no fp8 here"),
    ("profiler_", "--trace FILE shows where the time goes"),
    ("enable_torch_profiler", "--trace FILE shows where the time goes"),
    ("ppo_", OTHER_STAGE),
    ("kto_", OTHER_STAGE),
    ("reward_model", OTHER_STAGE),
    ("export_", HUB),
    ("infer_", "nothing is generated"),
    ("vllm_", "nothing is generated"),
    ("sglang_", "nothing is generated"),
    ("eval_", "every pair of the dev split is scored by itself, without settings"),
];

/// The reason for every other key.
pub(crate) const UNKNOWN: &str = "not a key that is known here: check whether it matters";

/// (A word, what to write instead): for whoever writes a config by hand.
const INSTEAD: &[(&str, &str)] = &[
    (
        "val_size",
        "name rows of the file: data.dev = [{ path = \"pairs.jsonl\", rows = \":5%\" }], and rows = \"5%:\" in data.train",
    ),
    (
        "test_split_size",
        "name rows of the file: data.dev = [{ path = \"pairs.jsonl\", rows = \":5%\" }], and rows = \"5%:\" in data.train",
    ),
    ("dataset", "name files in data.train: train = [{ path = \"pairs.jsonl\" }]; a path may be hf://owner/name"),
    ("dataset_name", "name files in data.train: train = [{ path = \"pairs.jsonl\" }]; a path may be hf://owner/name"),
    ("data_path", "name files in data.train: train = [{ path = \"pairs.jsonl\" }]; a path may be hf://owner/name"),
    ("train_file", "name files in data.train: train = [{ path = \"pairs.jsonl\" }]; a path may be hf://owner/name"),
    ("eval_dataset", "name files in data.dev, which pick the best checkpoint, or in data.test"),
    ("max_seq_length", "data.max_length: tokens of the longest sequence"),
    ("eval_strategy", "eval.every counts updates; 0: only at checkpoints and after the last"),
    ("save_strategy", "checkpoint.every counts updates; 0: only after the last"),
    ("logging_steps", "there is no such setting: every step's figures go into metrics.jsonl"),
    ("cache_dir", "data.cache_dir holds tokens and reference log-probs; HF_HUB_CACHE is the folder of hf:// paths"),
    ("seed", "data.seed is the seed of every shuffle, lora.seed that of the adapters"),
    ("bias", "there is no such setting: adapters have no biases, and a model's own are trained"),
    ("type", "the optimizer is AdamW; train.schedule names the schedule, a source's `format` its layout"),
    ("task_type", "there is no such setting: a reward head is always trained"),
    ("zero_stage", "parallel.shard_optimizer = true is ZeRO stage 1; weights are whole on every rank"),
    ("num_processes", "mpirun -n N, or haf-dist --ranks N, sets the number of ranks"),
    ("nproc_per_node", "mpirun -n N, or haf-dist --ranks N, sets the number of ranks"),
    ("training", "the table is [train]"),
    ("optimizer", "AdamW is the optimizer: its settings are in [train], e.g. train.learning_rate"),
    ("scheduler", "train.schedule: \"linear\", \"cosine\" or \"constant\""),
    ("peft", "the table is [lora]"),
    ("dev", "the list of files is data.dev"),
    ("test", "the list of files is data.test"),
];

/// What to write instead of a word, or why there is no such setting.
pub(super) fn answer(word: &str) -> Option<String> {
    let found = |table: &[(&str, &'static str)]| table.iter().find(|(name, _)| *name == word).map(|(_, why)| *why);
    let same = || SAME.iter().find(|(name, ..)| *name == word).map(|(_, key, _)| format!("the key is `{key}`"));
    let instead = found(INSTEAD).map(str::to_owned).or_else(same);
    instead.or_else(|| found(NOTHING).map(|why| format!("there is no such setting: {why}")))
}

/// As [`answer`], by the beginnings of further words.
pub(super) fn answer_by_beginning(word: &str) -> Option<String> {
    let family = FAMILIES.iter().find(|(start, _)| word.starts_with(start));
    family.map(|(_, why)| format!("there is no such setting: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::known_keys;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_word_has_one_meaning_and_every_key_is_there() {
        let keys = known_keys();
        for (word, key, _) in SAME {
            assert!(keys.iter().any(|known| known == key), "{word}: {key}");
        }
        let mut words = BTreeSet::new();
        let all = SAME.iter().map(|(word, ..)| word).chain(NOTHING.iter().map(|(word, _)| word));
        for word in all {
            assert!(words.insert(word), "{word} twice");
        }
    }
}
