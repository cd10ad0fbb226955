//! Promises of the prepared file: the same pairs again, rebuilt if it cannot be trusted, one clear error otherwise.

use haf_dist::config::{Format, Source, TemplateKind, Truncation};
use haf_dist::data::AnswerSpan;
use haf_dist::data::prepared::{LabeledPair, PreparedData};
use haf_dist::data::sequence::OwnedPair;
use haf_dist::data::tokenize::{Encoded, Encoder, Rules};
use haf_dist::data::{Pair, formats, report};
use haf_dist::error::{Error, Kind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A folder with a tokenizer of one-letter words, a source of pairs, and a cache.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let letters: Vec<String> =
            ('a'..='z').enumerate().map(|(number, letter)| format!("\"{letter}\":{}", number + 2)).collect();
        let tokenizer = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,"decoder":null,
            "added_tokens":[{{"id":0,"content":"<eos>","single_word":false,"lstrip":false,"rstrip":false,
            "normalized":false,"special":true}}],"pre_tokenizer":{{"type":"Whitespace"}},
            "model":{{"type":"WordLevel","vocab":{{"<eos>":0,"<unk>":1,{}}},"unk_token":"<unk>"}}}}"#,
            letters.join(",")
        );
        place.write("tokenizer.json", &tokenizer);
        place.write("tokenizer_config.json", r#"{"eos_token":"<eos>"}"#);
        place
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn source(&self, name: &str, text: &str) -> Source {
        Source { format: Format::Pairs, ..Source::new(self.write(name, text)) }
    }

    fn encoder(&self, max_length: usize) -> Encoder {
        Encoder::open(self.folder.path(), Rules::new(TemplateKind::Plain, max_length, 4, Truncation::Cut), 28).unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// The only file in the cache.
    fn cache_file(&self) -> PathBuf {
        let files: Vec<_> = std::fs::read_dir(self.cache()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    fn prepare(&self, sources: &[Source]) -> Result<PreparedData, Error> {
        PreparedData::open_or_make(sources, &self.encoder(12), &self.cache(), "train")
    }
}

/// 5 pairs; the third has identical answers, the fourth is cut at 12 tokens.
const FIRST: &str = r#"{"prompt":"a b c","chosen":" d e f","rejected":" d g","margin":1.5}
{"prompt":"a b","chosen":" c","rejected":" d","domain":"special"}
{"prompt":"a b","chosen":" c","rejected":" c"}
{"prompt":"a b c d e f g h","chosen":" i j k l m n o p q r","rejected":" z"}
{"prompt":"a b","chosen":" d","rejected":" c x y"}
"#;
const SECOND: &str = r#"{"prompt":"q","chosen":" r s","rejected":" s r"}
"#;

/// Everything about every pair, to compare data sets by.
fn content(data: &PreparedData) -> Vec<String> {
    let pair = |index| {
        let pair = data.pair(index);
        assert_eq!(pair.prefix.len() + pair.chosen.len() + pair.rejected.len(), data.tokens(index));
        format!("{pair:?} {}", data.domains()[pair.domain])
    };
    (0..data.len()).map(pair).collect()
}

/// What the encoder makes of a source, without any file.
fn encoded(source: &Source, encoder: &Encoder) -> Vec<LabeledPair> {
    let keep = |row: Pair| match encoder.encode(&row).unwrap() {
        Encoded::Kept(pair) => Some(LabeledPair {
            pair,
            margin: row.margin.unwrap_or(0.0),
            tied: false,
            domain: row.domain.unwrap_or_default(),
        }),
        Encoded::Dropped(_) => None,
    };
    formats::read(source).unwrap().pairs.into_iter().filter_map(keep).collect()
}

#[test]
fn prepared_pairs_are_the_encoders_pairs_and_the_second_time_come_from_the_file() {
    let place = Place::new();
    let sources = [place.source("first.jsonl", FIRST), place.source("second.jsonl", SECOND)];
    let made = place.prepare(&sources).unwrap();
    let file = std::fs::metadata(place.cache_file()).unwrap().ino();

    let direct: Vec<LabeledPair> = sources.iter().flat_map(|source| encoded(source, &place.encoder(12))).collect();
    assert_eq!(content(&made), content(&PreparedData::from_pairs(direct).unwrap()));
    assert_eq!(made.source_ranges(), [0..4, 4..5]);
    assert_eq!(made.domains(), ["first", "special", "second"]);
    assert_eq!(made.pair(0).margin, 1.5);

    let opened = place.prepare(&sources).unwrap();
    assert_eq!(content(&opened), content(&made));
    assert_eq!(opened.report(), made.report());
    assert_eq!(opened.source_ranges(), made.source_ranges());
    assert_eq!(std::fs::metadata(place.cache_file()).unwrap().ino(), file, "the file was made again for nothing");
}

#[test]
fn the_key_follows_what_the_tokens_depend_on_and_not_the_weights() {
    let place = Place::new();
    let source = place.source("first.jsonl", FIRST);
    let key = |sources: &[Source]| place.prepare(sources).unwrap().key();
    let plain = key(std::slice::from_ref(&source));

    assert_eq!(plain, key(&[Source { weight: 2.5, ..source.clone() }]));
    std::fs::create_dir(place.folder.path().join("elsewhere")).unwrap();
    assert_eq!(plain, key(&[place.source("elsewhere/first.jsonl", FIRST)]));

    assert_ne!(plain, key(&[Source { domain: Some("other".into()), ..source.clone() }]));
    assert_ne!(plain, key(&[Source { format: Format::Auto, ..source.clone() }]));
    assert_ne!(plain, key(&[source.clone(), source.clone()]));
    let shorter = PreparedData::open_or_make(&[source], &place.encoder(11), &place.cache(), "train").unwrap();
    assert_ne!(plain, shorter.key());
    assert_ne!(plain, key(&[place.source("first.jsonl", &FIRST.replace("1.5", "1.6"))]));
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(action: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, action);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn a_stale_cut_or_damaged_file_is_named_and_rebuilt() {
    let place = Place::new();
    let sources = [place.source("first.jsonl", FIRST)];
    let made = content(&place.prepare(&sources).unwrap());
    let path = place.cache_file();
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(logged(|| drop(place.prepare(&sources).unwrap())), "", "a whole file is no reason to warn");

    let flipped = |position: usize| {
        let mut bytes = whole.clone();
        bytes[position] ^= 1;
        bytes
    };
    let stale = String::from_utf8_lossy(&whole).find("haf-dist pairs").unwrap();
    let mut broken = vec![
        (Vec::new(), "safetensors"),
        (whole[..5].to_vec(), "safetensors"),
        (whole[..whole.len() - 1].to_vec(), "safetensors"),
        (flipped(stale), "version"),
        (flipped(whole.len() - 1), "checksum"),
    ];
    // Anywhere at all: the header's JSON, the texts, every tensor.
    broken.extend((0..whole.len()).step_by(61).map(|position| (flipped(position), "")));
    for (number, (bytes, why)) in broken.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let log = logged(|| assert_eq!(content(&place.prepare(&sources).unwrap()), made));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(log.contains("WARN") && log.contains(name) && log.contains(why), "case {number}: {log:?}");
        assert_eq!(std::fs::read(&path).unwrap().len(), whole.len());
    }
}

#[test]
fn several_at_once_end_well() {
    let place = Place::new();
    let sources = [place.source("first.jsonl", FIRST)];
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| content(&place.prepare(&sources).unwrap()));
        let threads: Vec<_> = (0..8).map(|_| start()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(results.iter().all(|result| *result == results[0]));
    place.cache_file();
}

#[test]
fn a_source_that_leaves_nothing_is_named_with_the_reasons() {
    let place = Place::new();
    let identical = "{\"prompt\":\"a\",\"chosen\":\"c\",\"rejected\":\"c\"}\n".repeat(3);
    let sources = [place.source("first.jsonl", FIRST), place.source("identical.jsonl", &identical)];
    let error = place.prepare(&sources).unwrap_err();
    assert_eq!(error.kind, Kind::Input);
    for part in ["identical.jsonl", "3 pairs", "data.train", "identical answers: 3"] {
        assert!(error.message.contains(part), "{part} is not in {error}");
    }
    assert_eq!(std::fs::read_dir(place.cache()).unwrap().count(), 0, "something was cached");
}

#[test]
fn a_missing_source_no_source_and_a_cache_folder_that_takes_no_files_are_input_errors() {
    let place = Place::new();
    let source = place.source("first.jsonl", FIRST);
    let missing = Source { path: place.folder.path().join("missing.jsonl"), ..source.clone() };
    let not_a_folder = place.write("file", "");
    let prepare = |sources: &[Source], cache: &Path| {
        let error = PreparedData::open_or_make(sources, &place.encoder(12), cache, "dev").unwrap_err();
        assert_eq!(error.kind, Kind::Input, "{error}");
        error.to_string()
    };
    assert!(prepare(&[missing], &place.cache()).contains("missing.jsonl"));
    assert!(prepare(&[], &place.cache()).contains("data.dev"));
    let error = prepare(&[source], &not_a_folder.join("cache"));
    assert!(error.contains("data.cache_dir") && error.contains("file/cache") && error.contains("hint"), "{error}");
}

/// Lengths count; the tokens are all 7.
fn labeled(prefix: usize, chosen: usize, rejected: usize, domain: &str) -> LabeledPair {
    let pair = OwnedPair {
        tokens: vec![7; prefix + chosen + rejected],
        prefix,
        chosen,
        rejected,
        spans: AnswerSpan::of_pair(prefix, prefix, chosen, rejected),
        prompt_hash: 3,
        prompt_cut: chosen > 5,
        answer_cut: chosen > 6,
        special_in_text: 2,
    };
    LabeledPair { pair, margin: 0.0, tied: false, domain: domain.to_owned() }
}

#[test]
fn pairs_in_memory_know_their_content() {
    let data = PreparedData::from_pairs(vec![labeled(4, 1, 0, "single"), labeled(0, 2, 3, "pair")]).unwrap();
    assert_eq!((data.len(), data.tokens(0), data.tokens(1)), (2, 5, 5));
    assert!(data.pair(0).rejected.is_empty());
    let key = |prefix| PreparedData::from_pairs(vec![labeled(prefix, 1, 1, "x")]).unwrap().key();
    assert_eq!(key(4), key(4));
    assert_ne!(key(4), key(5));

    assert!(PreparedData::from_pairs(Vec::new()).unwrap().is_empty());
    let mut wrong = labeled(4, 1, 1, "x");
    wrong.pair.prefix = 3;
    assert!(PreparedData::from_pairs(vec![wrong]).is_err());
}

#[test]
fn the_report_counts_tokens_sharing_and_the_length_guess() {
    let rows = vec![labeled(10, 2, 3, "x"), labeled(10, 2, 4, "x"), labeled(10, 7, 3, "y"), labeled(10, 5, 5, "y")];
    let counts = PreparedData::from_pairs(rows).unwrap().report().total();
    assert_eq!((counts.read, counts.kept, counts.prompts_cut, counts.answers_cut), (4, 4, 1, 1));
    assert_eq!((counts.tokens(), counts.longest, counts.special_in_text), (71, 17, 8));
    assert!((counts.saved_by_prefix() - (1.0 - 71.0 / 111.0)).abs() < 1e-12);
    // The shorter answer wins twice, the longer once, and one tie counts half.
    assert_eq!(counts.length_guess(), (0.625, report::Longer::Loses));

    // Nothing is shared, and nothing can be guessed, where there is one answer.
    let single = PreparedData::from_pairs(vec![labeled(10, 2, 0, "x")]).unwrap().report().total();
    assert_eq!((single.saved_by_prefix(), single.length_guess().0), (0.0, 0.5));
}

#[test]
fn the_report_is_one_readable_table() {
    let place = Place::new();
    let train = place.prepare(&[place.source("first.jsonl", FIRST), place.source("second.jsonl", SECOND)]).unwrap();
    let dev =
        PreparedData::open_or_make(&[place.source("dev.jsonl", SECOND)], &place.encoder(12), &place.cache(), "dev")
            .unwrap();
    insta::assert_snapshot!(report::render(&[train.report(), dev.report()]), @r"
    |                              |        train |       train: |       train: |   dev |
    |                              |              |  first.jsonl | second.jsonl |       |
    |------------------------------|--------------|--------------|--------------|-------|
    | pairs read                   |            6 |            5 |            1 |     1 |
    | - identical answers          |            1 |            1 |            0 |     0 |
    | pairs kept                   |            5 |            4 |            1 |     1 |
    |   in dev                     |            0 |            0 |            0 |     1 |
    |   in first                   |            3 |            3 |            0 |     0 |
    |   in second                  |            1 |            0 |            1 |     0 |
    |   in special                 |            1 |            1 |            0 |     0 |
    | prompts truncated            |            1 |            1 |            0 |     0 |
    | answers truncated (EOS lost) |            1 |            1 |            0 |     0 |
    | special tokens in text       |            0 |            0 |            0 |     0 |
    | tokens                       |           44 |           37 |            7 |     7 |
    |   common prefix              |           13 |           12 |            1 |     1 |
    |   chosen                     |           18 |           15 |            3 |     3 |
    |   rejected                   |           13 |           10 |            3 |     3 |
    | longest sequence             |           12 |           12 |            4 |     4 |
    | saved by the prefix          |        22.8% |        24.5% |        12.5% | 12.5% |
    | length-only guess            | longer 0.600 | longer 0.625 |        0.500 | 0.500 |
    ");
}
