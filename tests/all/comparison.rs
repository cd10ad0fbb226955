//! Promise: a comparison counts correctly, treats a prompt as one piece of evidence, and refuses runs that are no pair.

use haf_dist::config::{Config, Objective};
use haf_dist::evaluate::comparison::{ComparedRun, Comparison, Difference, RankedBy};
use haf_dist::metrics::{PairOutcome, RunFacts};

const CONFIG: &str = "model.path = 'm'\ndata.train = [{ path = 't' }]\noutput.dir = 'o'\n";

/// A run whose heads get right what the two texts say: `+` right, `-` wrong, `=` a tie, an empty text no such head (of hybrid: as the reward head). Two
/// pairs a prompt.
fn run(objective: &str, seed: u64, reward: &str, policy: &str) -> ComparedRun {
    let set = [format!("loss.objective={objective}"), format!("data.seed={seed}"), format!("output.dir={seed}")];
    let config = Config::parse("a.toml", CONFIG, &set).unwrap();
    // The hybrid objective has both heads.
    let policy = if objective == "hybrid" && policy.is_empty() { reward } else { policy };
    let margin = |text: &str, index: usize| match text.as_bytes().get(index) {
        Some(b'+') => Some(0.5),
        Some(b'-') => Some(-0.5),
        Some(_) => Some(0.0),
        None => None,
    };
    let outcome = |index: usize| PairOutcome {
        pair: format!("{index}"),
        prompt: format!("{:016x}", index / 2),
        domain: "d".into(),
        margin: margin(reward, index),
        implicit_margin: margin(policy, index),
    };
    ComparedRun {
        name: format!("{objective}-{seed}"),
        facts: RunFacts { step: 4, data_key: format!("order {seed}"), model_key: "m".into(), combined: None, config },
        outcomes: (0..reward.len().max(policy.len())).map(outcome).collect(),
    }
}

#[test]
fn a_run_that_diverged_is_refused_rather_than_left_out() {
    let mut diverged = run("hybrid", 2, "++++", "++--");
    diverged.outcomes[3].margin = None;
    let error = Comparison::of(&[run("hybrid", 1, "++++", "++--"), diverged]).unwrap_err();
    assert!(error.message.contains("hybrid-2") && error.hint.is_some(), "{error}");
}

fn find(comparison: &Comparison, of: (Objective, RankedBy), over: (Objective, RankedBy)) -> Difference {
    let is = |ranker: &haf_dist::evaluate::comparison::Ranker, wanted| (ranker.objective, ranker.ranked_by) == wanted;
    comparison.differences.iter().find(|row| is(&row.of, of) && is(&row.over, over)).unwrap().clone()
}

const HYBRID: (Objective, RankedBy) = (Objective::Hybrid, RankedBy::Reward);
const REWARD: (Objective, RankedBy) = (Objective::Reward, RankedBy::Reward);
const POLICY: (Objective, RankedBy) = (Objective::Policy, RankedBy::Policy);

#[test]
fn accuracies_and_differences_are_means_over_pairs_and_seeds() {
    let runs = [
        run("hybrid", 1, "++++++-=", "++------"),
        run("hybrid", 2, "++++++++", "++++----"),
        run("reward", 1, "++--++--", ""),
        run("reward", 2, "++++++--", ""),
        run("policy", 1, "", "+-+-+-+-"),
    ];
    let comparison = Comparison::of(&runs).unwrap();
    assert_eq!((comparison.pairs, comparison.prompts, comparison.seeds.len()), (8, 4, 2));
    let hybrid = &comparison.accuracies[0];
    assert_eq!(hybrid.by_seed[&1].0, 6.5 / 8.0, "a tie is half a hit");
    assert_eq!((hybrid.by_seed[&2].0, hybrid.mean), (1.0, 7.25 / 8.0));
    let interval = hybrid.interval.unwrap();
    assert!(interval.low < hybrid.mean && hybrid.mean <= interval.high, "{interval:?}");

    let over_reward = find(&comparison, HYBRID, REWARD);
    assert_eq!((over_reward.by_seed[&1], over_reward.by_seed[&2]), (2.5 / 8.0, 0.25));
    assert_eq!(over_reward.mean, (2.5 / 8.0 + 0.25) / 2.0);
    // Half hits of the four prompts over both seeds: 0, 4, 0, 1 + 4. Both kept together or both turned round is as far.
    assert_eq!(over_reward.p, 0.5);
    // Only seed 1 has a policy run.
    let over_policy = find(&comparison, HYBRID, POLICY);
    assert_eq!(over_policy.by_seed.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(over_policy.deviation, None, "one seed has no spread");
    assert!(comparison.differences.iter().all(|row| row.p <= row.p_holm && row.p_holm <= 1.0));
}

#[test]
fn more_seeds_of_the_same_answers_are_no_more_evidence_about_the_test_pairs() {
    let seeds = |count: u64| {
        let of_seed = |seed| [run("hybrid", seed, "++++++++++-+", ""), run("reward", seed, "-+-+-+-+-+-+", "")];
        let runs: Vec<ComparedRun> = (1..=count).flat_map(of_seed).collect();
        find(&Comparison::of(&runs).unwrap(), HYBRID, REWARD)
    };
    assert_eq!((seeds(1).p, seeds(1).interval), (seeds(5).p, seeds(5).interval));
    // Five of five prompts: as rare as five heads, or five tails.
    assert_eq!(seeds(1).p, 2.0 / 32.0);
    // The control: more prompts are.
    let doubled = [run("hybrid", 1, &"++".repeat(10), ""), run("reward", 1, &"-+".repeat(10), "")];
    assert!(find(&Comparison::of(&doubled).unwrap(), HYBRID, REWARD).p < seeds(5).p);
}

#[test]
fn runs_that_never_differ_are_not_said_to_be_equal_for_certain() {
    let runs = [run("hybrid", 1, "++-+-+", ""), run("reward", 1, "++-+-+", "")];
    let same = find(&Comparison::of(&runs).unwrap(), HYBRID, REWARD);
    let interval = same.interval.unwrap();
    assert_eq!((same.mean, same.p), (0.0, 1.0));
    assert!(interval.low < -0.1 && interval.high > 0.1, "{interval:?}");
}

#[test]
fn runs_that_are_no_pair_are_refused_by_name() {
    let hybrid = run("hybrid", 1, "++", "+-");
    let refusal = |change: &dyn Fn(&mut ComparedRun)| {
        let mut other = run("reward", 1, "+-", "");
        change(&mut other);
        let error = Comparison::of(&[hybrid.clone(), other]).expect_err("these runs should be refused");
        assert!(error.hint.is_some() && error.message.starts_with("reward-1: "), "{error}");
        error.message
    };
    assert!(refusal(&|run| run.outcomes[1].pair = "other".into()).contains("other test pairs than hybrid-1"));
    assert!(refusal(&|run| run.outcomes.clear()).contains("other test pairs"));
    assert!(refusal(&|run| run.facts.data_key = "other".into()).contains("other training pairs than hybrid-1"));
    assert!(refusal(&|run| run.facts.model_key = "other".into()).contains("another starting model"));
    let hybrid_again = |run: &mut ComparedRun| run.facts.config.loss.objective = Objective::Hybrid;
    let three = [hybrid.clone(), run("hybrid", 2, "++", "+-"), run("hybrid", 1, "+-", "")];
    let error = Comparison::of(&three).unwrap_err();
    assert!(error.message.contains("a second run of hybrid with data.seed = 1"), "{error}");
    let shorter = |run: &mut ComparedRun| {
        hybrid_again(run);
        (run.facts.config.data.seed, run.facts.step) = (2, 3);
    };
    assert!(refusal(&shorter).contains("tested after step 3, but hybrid-1 after step 4"));
    // What changes no result may differ.
    let mut other = run("reward", 1, "+-", "");
    other.facts.config.parallel.threads = 2;
    other.facts.config.train.tokens_per_micro_batch = 77;
    other.facts.config.data.cache_dir = "elsewhere".into();
    Comparison::of(&[hybrid, other]).unwrap();
}

/// The same with other settings.
fn with(mut run: ComparedRun, name: &str, change: impl Fn(&mut Config)) -> ComparedRun {
    change(&mut run.facts.config);
    run.name = name.into();
    run
}

#[test]
fn any_two_runs_on_the_same_test_pairs_are_compared_and_named_by_their_differences() {
    let normal = |seed, hits: &str| {
        with(run("hybrid", seed, hits, ""), "normal", |config| config.loss.prior = haf_dist::config::Prior::Normal)
    };
    let runs = [run("hybrid", 1, "+++-", ""), normal(1, "+---"), run("hybrid", 2, "++++", ""), normal(2, "++--")];
    let comparison = Comparison::of(&runs).unwrap();
    let names: Vec<&str> = comparison.accuracies.iter().map(|row| &row.ranker.variant[..]).collect();
    let expected = ["hybrid, loss.prior=logistic", "hybrid, loss.prior=normal"];
    assert_eq!(names, [expected[0], expected[0], expected[1], expected[1]], "each with two heads");
    assert_eq!(comparison.differences.len(), 2, "by the reward heads, and by the implicit rewards");
    assert_eq!(comparison.differences[0].mean, 0.5);
    assert!(comparison.markdown().contains("- hybrid, loss.prior=normal: loss.prior = normal\n"));

    // Two other models trained on other pairs for another time: the test pairs are all that they need in common.
    let mut other = with(run("hybrid", 7, "+---", ""), "other", |config| {
        config.model.path = "another".into();
        config.train.steps = Some(9);
        config.data.train[0].path = "u".into();
    });
    (other.facts.step, other.facts.data_key, other.facts.model_key) = (9, "o".into(), "n".into());
    let comparison = Comparison::of(&[run("hybrid", 1, "+++-", ""), run("hybrid", 2, "++++", ""), other]).unwrap();
    let row = &comparison.differences[0];
    assert_eq!(row.mean, 7.0 / 8.0 - 0.25, "the mean of two runs less the one of another seed");
    assert!(row.by_seed.is_empty() && row.deviation.is_none(), "no seed is common: {row:?}");
    // Half hits over two runs of the two prompts: 2 + 0 and 4 + 3 - 2 * 0; all signs alike is one of two ways of four.
    assert_eq!(row.p, 0.5);
}

/// Promise: a table says which run is which, and two runs are compared even where only their seeds differ.
#[test]
fn single_runs_are_called_by_their_folders() {
    let named = |run: ComparedRun, name: &str| with(run, name, |_| ());
    let of = |runs: [ComparedRun; 2]| Comparison::of(&runs).unwrap().markdown();
    let seeds = of([named(run("reward", 1, "++++", ""), "runs/a"), named(run("reward", 2, "++--", ""), "runs/b")]);
    assert!(seeds.contains("| a       |    1 |") && seeds.contains("| b       |    2 |"), "{seeds}");
    assert!(seeds.contains("- a against b: ") && seeds.contains("There is one run of each"), "{seeds}");
    assert!(!seeds.contains("standard deviations"), "{seeds}");
    let same = of([named(run("reward", 0, "++++", ""), "x/a"), named(run("reward", 0, "++--", ""), "y/a")]);
    assert!(same.contains("x/a against y/a") && same.contains(" seed 0; "), "{same}");
    let both = of([named(run("hybrid", 1, "++++", ""), "runs/a"), named(run("policy", 1, "", "++--"), "runs/b")]);
    assert!(both.contains("- a, reward head against b: "), "{both}");
}

#[test]
fn both_heads_are_combined_as_each_run_was_fitted() {
    // The reward head is right about the first prompt, the policy about the second.
    let mut both = run("hybrid", 1, "++--", "--++");
    let find_combined = |run: &ComparedRun| {
        let comparison = Comparison::of(std::slice::from_ref(run)).unwrap();
        let is = |row: &&haf_dist::evaluate::comparison::Accuracy| row.ranker.ranked_by == RankedBy::Combined;
        comparison
            .accuracies
            .iter()
            .find(is)
            .map(|row| row.mean)
            .zip(comparison.differences.first().map(|row| row.mean))
    };
    assert_eq!(find_combined(&both), None, "nothing was fitted");
    both.facts.combined = Some(haf_dist::checkpoint::Weights { reward: 2.0, implicit: 1.0 });
    assert_eq!(find_combined(&both), Some((0.5, 0.0)), "the reward head outvotes the policy");
    both.outcomes
        .iter_mut()
        .for_each(|outcome| outcome.implicit_margin = outcome.implicit_margin.map(|margin| 3.0 * margin));
    both.outcomes[0].implicit_margin = Some(0.1);
    assert_eq!(find_combined(&both), Some((0.75, 0.25)), "three pairs by the one or the other");
}

#[test]
fn every_difference_comes_with_the_smallest_that_these_pairs_could_have_shown() {
    // 80 prompts of two pairs; the sums of ten differ, of six upwards.
    let ours = "++".repeat(10) + "----" + "----" + &"+-".repeat(66);
    let theirs = "----".repeat(3) + &"++".repeat(4) + "++++" + "++++" + &"+-".repeat(66);
    let comparison = Comparison::of(&[run("hybrid", 1, &ours, ""), run("reward", 1, &theirs, "")]).unwrap();
    let row = &comparison.differences[0];
    assert_eq!(row.mean, 4.0 / 160.0);
    // Six prompts with a sum of 2 and four of -2 about their mean of 0.05.
    let squares = 6.0 * 1.95f64.powi(2) + 4.0 * 2.05f64.powi(2) + 70.0 * 0.05f64.powi(2);
    let expected = 2.801_585 * (squares / 79.0 * 80.0).sqrt() / 160.0;
    assert!((row.detectable.unwrap() - expected).abs() < 1e-6, "{:?} {expected}", row.detectable);
    let text = comparison.markdown();
    assert!(text.contains("no difference is shown. One of 11.1 points or more could be found"), "{text}");
    assert!(text.contains("There is only one seed"), "{text}");
}

/// Promise: models are said to rank all pairs alike only where they do.
#[test]
fn differences_that_cancel_are_not_called_alike() {
    let says = |ours: &str, theirs: &str| {
        Comparison::of(&[run("hybrid", 1, ours, ""), run("reward", 1, theirs, "")]).unwrap().markdown()
    };
    assert!(says("+++-", "+++-").contains("rank every test pair the same"));
    // The first prompt's pairs upwards, the second's downwards: the mean is 0 and p is 1.
    let canceled = says("++--", "--++");
    assert!(canceled.contains("too few to find any") && !canceled.contains("alike"), "{canceled}");
}

#[test]
fn a_run_is_not_compared_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: String| with(run("hybrid", 1, "+++-", ""), &name, |_| {});
    let twice = [named(folder.path().display().to_string()), named(format!("{}/", folder.path().display()))];
    let error = Comparison::of(&twice).unwrap_err();
    assert!(error.hint.is_some_and(|hint| hint.contains("only one run for each seed")), "{}", error.message);
    // The control: another folder.
    Comparison::of(&[named("one".into()), named("other".into())]).unwrap();
}

#[test]
fn the_tables_and_the_json_lines_have_every_figure() {
    let runs = [
        run("hybrid", 1, "++++", "++--"),
        run("hybrid", 2, "+++-", "++--"),
        run("reward", 1, "++--", ""),
        run("reward", 2, "++--", ""),
        run("policy", 1, "", "-+++"),
        run("policy", 2, "", "++++"),
    ];
    let comparison = Comparison::of(&runs).unwrap();
    insta::assert_snapshot!("comparison", comparison.markdown());
    let lines = comparison.json_lines();
    // The runs, three variants, three rows (two seeds and the mean) of four rankers, four differences.
    assert_eq!(lines.len(), 1 + 3 + 4 * 3 + 4);
    assert_eq!(lines[0]["seeds"], serde_json::json!([1, 2]));
    assert_eq!(lines[1]["settings"], serde_json::json!({"loss.objective": "hybrid"}));
    assert!(lines[4]["objective"] == "hybrid" && lines[4]["seed"] == 1 && lines[4]["accuracy"] == 1.0, "{}", lines[4]);
    let over = serde_json::json!({"variant": "reward", "objective": "reward", "ranked_by": "reward"});
    assert_eq!((&lines[16]["over"], &lines[16]["difference"]), (&over, &serde_json::json!(0.375)));
}
