//! Texts below the options in each command's `--help`.

/// Below the options of `haf-dist`.
pub(crate) const TRAINING: &str = "\
Examples:
  haf-dist init --model models/my-model --train my.jsonl  write a config to begin with
  haf-dist check safety.toml --ranks 8                    see whether it would start
  haf-dist train safety.toml --ranks 8                    train on eight ranks of this machine
  mpirun -n 8 haf-dist --config safety.toml               the same, started by mpirun
  haf-dist train safety.toml loss.alpha=0.5               train on one, with another weight
  haf-dist train safety.toml --debug                      try a config out, every check on
  haf-dist train safety.toml --trace trace.json           see where the time goes
  haf-dist train safety.toml --ranks 8 --resume           continue after an interruption
  haf-dist eval --checkpoint runs/safety --data data/test.jsonl

haf-dist init --reference prints every key of the config file with its default.

Environment:
  HAF_LOG, RUST_LOG  what is logged, e.g. debug or haf_dist=trace [default: info on rank 0, else warn]
  HAF_COLUMNS        how wide tables may be; 0: whole lines [default: the terminal; in files 0]
  HF_HUB_CACHE, HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT
                     where hf:// paths are fetched from and cached, as in Hugging Face's own programs
  NO_COLOR           no colors

Exit codes:
  0    done
  1    the machine or the program failed
  2    the command line, the config or another input is wrong
  143  stopped by a signal, with a checkpoint saved";

/// Below the options of `haf-dist train`.
pub(crate) const TRAIN: &str = "\
Examples:
  haf-dist train safety.toml train.steps=100
  haf-dist train safety.toml --ranks 4 --resume";

/// Below the options of `haf-dist init`.
pub(crate) const INIT: &str = "\
Examples:
  haf-dist init --model models/SmolLM2-135M-Instruct --train train.jsonl --dev dev.jsonl --out safety.toml
  haf-dist init --from trl_reward.yaml --processes 8        TRL's YAML config, on 8 processes
  haf-dist init --from train_rm.py --train train.jsonl      the literal arguments of a script; it is not run
  haf-dist init --from llama3_rm.yaml --out -               LLaMA-Factory's, to standard output
  haf-dist init --reference                                 every key with its default

Reads the headers of the weights, and all rows of data files up to 256 MB. A comment at each key gives the reason for its value.";

/// Below the options of `haf-dist check`.
pub(crate) const CHECK: &str = "\
Examples:
  haf-dist check safety.toml --ranks 8
  haf-dist check safety.toml data.max_length=2048 --json

Exit code 2 if a line is not OK. Reads the first rows of the data and the headers of the weights.";

/// Below the options of `haf-dist completions`.
pub(crate) const COMPLETIONS: &str = "\
Examples:
  haf-dist completions bash > ~/.local/share/bash-completion/completions/haf-dist
  haf-dist completions zsh > ~/.zfunc/_haf-dist          with ~/.zfunc in fpath
  haf-dist completions fish > ~/.config/fish/completions/haf-dist.fish";

/// Below the options of `haf-dist eval`.
pub(crate) const EVAL: &str = "\
Examples:
  haf-dist eval --checkpoint runs/safety/step-100 --data data/test.jsonl
  mpirun -n 2 haf-dist eval --checkpoint models/some-reward-model --data hh.jsonl.gz --template chat --json
  haf-dist eval --checkpoint runs/safety/step-100 --suite rewardbench2 rb2.jsonl --suite rm-bench total_dataset.json";

/// Below the options of `haf-dist score`.
pub(crate) const SCORE: &str = "\
Examples:
  haf-dist score --checkpoint runs/safety/step-100 --data answers.jsonl > scores.jsonl
  haf-dist score --checkpoint runs/safety/step-100 --data pairs.jsonl --output scores.jsonl";

/// Below the options of `haf-dist bench`.
pub(crate) const BENCH: &str = "\
Examples:
  haf-dist bench --model models/SmolLM2-135M-Instruct --pairs hh.jsonl.gz --threads 1
  haf-dist bench --model models/SmolLM2-135M-Instruct --pairs hh.jsonl.gz --objective reward --count 96 --json";

/// Below the options of `haf-dist prepare`.
pub(crate) const PREPARE: &str = "\
Examples:
  haf-dist prepare --config safety.toml
  mpirun -n 8 haf-dist prepare --config safety.toml --set data.cache_dir=/scratch/cache";

/// Below the options of `haf-dist export`.
pub(crate) const EXPORT: &str = "\
Examples:
  haf-dist export runs/safety/step-100 models/safety                the checkpoint without trainer/
  haf-dist export --merge runs/lora/step-100 models/lora-merged     base + adapter as one model, reward head kept";

/// Below the options of `haf-dist verify`.
pub(crate) const VERIFY: &str = "\
Examples:
  haf-dist verify models/safety                      a table; exit code 1 if something differs
  haf-dist verify models/safety --python verify.py   then: python verify.py models/safety";

/// Below the options of `haf-dist plan`.
pub(crate) const PLAN: &str = "\
Examples:
  haf-dist plan safety.toml --gpus 16                                  will it fit, how long will it take
  haf-dist plan --shape 8b --gpus 8 --gpu h100                         without any file
  haf-dist plan --model hf://owner/name --gpus 8 --tokens 8192
  haf-dist plan --config safety.toml --gpus 64 --gpu a100 --mfu 0.35
  haf-dist plan --config safety.toml --gpus 8 --pair-tokens 200,60,60  without the data

Reads the model's config.json, and the lengths of the pairs if a config names them. Prints its assumptions with the figures. Exit code 1 if it does not fit.";

/// Below the options of `haf-dist models`.
pub(crate) const MODELS: &str = "\
Examples:
  haf-dist models                                     the families, and what each covers
  haf-dist models models/SmolLM2-135M-Instruct        exit code 2 and every reason if it would not load

Reads a folder's config.json, tokenizer files and safetensors headers only, so it takes seconds even for large models.";

/// Below the options of `haf-dist compare`.
pub(crate) const COMPARE: &str = "\
Examples:
  haf-dist compare runs/a runs/b
  haf-dist compare --train configs/compare.toml
  haf-dist compare --train safety.toml --seeds 5 --ranks 8 --objectives hybrid,reward
  haf-dist compare --train safety.toml --variant loss.prior=logistic --variant loss.prior=normal \\
      --learning-rates 3e-5,1e-4,3e-4";
