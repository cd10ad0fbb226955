//! A model folder's tokenizer: tokenizer.json, and the tokens that the folder's other files declare.
//!
//! Tokens are added in the order and with the flags of Transformers 5.24 (`TokenizersBackend`), so that ids are those of its
//! `AutoTokenizer`. A spelling of older versions that it refuses (a token as an object without `__type`) is read here. Not
//! here: the texts that are tokenized (`template/`), the tokens of a pair (`tokenize/`).

use crate::error::{Error, Result};
use crate::files;
use crate::panics::contain;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer};
use xxhash_rust::xxh3::xxh3_128;

/// Size limit of tokenizer.json, in bytes: several times the size with a vocabulary of 262,144.
pub(crate) const MOST_BYTES: u64 = 256 << 20;
/// Size limit of the files beside it, in bytes.
pub(crate) const MOST_BYTES_BESIDE: u64 = 32 << 20;

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The special tokens with a name of their own in Transformers, in its order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A folder's tokenizer.
pub struct FolderTokenizer {
    /// With every token of the folder.
    pub tokenizer: Tokenizer,
    /// Hash of everything that it depends on.
    pub fingerprint: u128,
}

/// Reads the tokenizer of a model's folder.
///
/// # Errors
/// A missing, broken or oversized file, or settings that make tokenization random.
pub fn open(folder: &Path) -> Result<FolderTokenizer> {
    let path = folder.join("tokenizer.json");
    let bytes = files::read_within(&path, MOST_BYTES).map_err(|error| error.hint(how_to_make_one(folder)))?;
    let broken = |what: String| {
        Error::input(format!("{}: broken tokenizer: {what}", path.display()))
            .hint("get it again from where the model is from")
    };
    let read = contain(|| Tokenizer::from_bytes(&bytes)).map_err(broken)?;
    let mut tokenizer = read.map_err(|error| broken(error.to_string()))?;
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && let Some(dropout) = model.dropout.filter(|dropout| *dropout > 0.0)
    {
        return Err(Error::input(format!(
            "{}: dropout = {dropout} would give a text different ids each time",
            path.display()
        ))
        .hint("set `dropout` of its `model` to null"));
    }
    // The file may have settings of an earlier use; Transformers does not apply them, either.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| Error::runtime(format!("{}: {error}", path.display())))?;

    let declared = Declared::read(folder, &tokenizer)?;
    let added = format!("{:?}", declared.to_add);
    contain(|| tokenizer.add_tokens(declared.to_add.clone()))
        .and_then(|added| added.map_err(|error| error.to_string()))
        .map_err(|what| {
            Error::input(format!("{}: its tokens cannot be added: {what}", folder.display()))
                .hint(format!("compare {CONFIG}, {MAP} and {ADDED} with those of the original model"))
        })?;
    warn_of_other_ids(folder, &declared, &tokenizer);
    let hashes = [xxh3_128(&bytes), xxh3_128(added.as_bytes())].map(u128::to_le_bytes);
    Ok(FolderTokenizer { tokenizer, fingerprint: xxh3_128(hashes.as_flattened()) })
}

/// Tokens of a text; with `add_special_tokens`, also those that the tokenizer puts around it.
///
/// # Errors
/// A text that the tokenizer cannot read, or on which its regular expressions take more steps than the engine allows.
pub fn encode(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
    match contain(|| tokenizer.encode_fast(text, add_special_tokens)) {
        Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
        Ok(Err(error)) => Err(Error::input(format!("the tokenizer cannot read a text: {error}"))
            .hint("a tokenizer without an unknown token cannot read characters outside its alphabet")),
        Err(panic) => Err(Error::input(format!("the tokenizer gives up on a text of {} bytes: {panic}", text.len())).hint(
            "a regular expression in tokenizer.json backtracks too long on this text: use the original model's file, or \
             leave the row out",
        )),
    }
}

/// Tokens of a text alone, and the character range of each.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_with_offsets(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
    match contain(|| tokenizer.encode_char_offsets(text, false)) {
        Ok(Ok(encoding)) => {
            let offsets = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
            Ok((encoding.get_ids().to_vec(), offsets))
        }
        // `encode` has the error, with its hint.
        _ => encode(tokenizer, text, false).map(|tokens| {
            let nowhere = vec![0..0; tokens.len()];
            (tokens, nowhere)
        }),
    }
}

fn how_to_make_one(folder: &Path) -> String {
    let (needs, has) = match folder.join("tokenizer.model").is_file() {
        true => ("transformers sentencepiece protobuf", "tokenizer.model"),
        false => ("transformers", "its tokenizer's files"),
    };
    format!(
        "if the folder has {has}, make it in Python (pip install {needs}): \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR); else get it from where the model is from"
    )
}

/// The tokens that the files beside tokenizer.json declare.
struct Declared {
    /// In the order in which they get their ids.
    to_add: Vec<AddedToken>,
    /// By their ids in the files; the ids that they get may differ.
    ids: BTreeMap<u32, String>,
}

/// A token in a file: a text, or an object with flags.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Text(String),
    Flagged(AddedToken),
}

impl Token {
    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Flagged(token) => &token.content,
        }
    }

    /// Reads a text or an object; `special` is the default of that key.
    fn of(value: &Value, special: bool) -> Option<Self> {
        #[derive(Deserialize)]
        struct Flags {
            content: String,
            #[serde(default)]
            single_word: bool,
            #[serde(default)]
            lstrip: bool,
            #[serde(default)]
            rstrip: bool,
            normalized: Option<bool>,
            special: Option<bool>,
        }
        if let Value::String(text) = value {
            return Some(Self::Text(text.clone()));
        }
        let Flags { content, single_word, lstrip, rstrip, normalized, special: is } =
            Flags::deserialize(value.as_object()?).ok()?;
        let special = is.unwrap_or(special);
        let normalized = normalized.unwrap_or(!special);
        Some(Self::Flagged(AddedToken { content, single_word, lstrip, rstrip, normalized, special }))
    }
}

impl Declared {
    fn read(folder: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let mut settings = object(folder, CONFIG)?;
        if settings.get("split_special_tokens").and_then(Value::as_bool) == Some(true) {
            let path = folder.join(CONFIG);
            return Err(Error::input(format!("{}: split_special_tokens = true is not supported", path.display()))
                .hint("the template's EOS would be read letter by letter: take the key out"));
        }
        // `additional_special_tokens` is the older name; it is used if the newer one is missing or empty.
        let is_empty = |value: Option<&Value>| match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(named)) => named.is_empty(),
            Some(_) => false,
        };
        if is_empty(settings.get("extra_special_tokens"))
            && let Some(older) = settings.shift_remove("additional_special_tokens")
        {
            settings.insert("extra_special_tokens".into(), older);
        }
        let mut specific = take_specific(&mut settings);

        let mut by_id: BTreeMap<u32, AddedToken> = BTreeMap::new();
        if let Some(listed) = settings.get("added_tokens_decoder") {
            by_id = with_ids(folder, listed)?;
        } else {
            merge_map(&mut settings, &mut specific, object(folder, MAP)?);
            let special: HashSet<String> = NAMED
                .iter()
                .filter_map(|name| Some(Token::of(settings.get(*name)?, true)?.content().to_string()))
                .chain(list(&settings).iter().filter_map(|value| Some(Token::of(value, true)?.content().to_string())))
                .collect();
            for (content, id) in object(folder, ADDED)? {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    wrong(folder, ADDED, &format!("{content:?} has the id {id}"), "expected {\"TOKEN\": ID, ...}")
                })?;
                let special = special.contains(&content);
                by_id.insert(id, AddedToken::from(content, special));
            }
            by_id.extend(tokenizer.get_added_tokens_decoder());
        }
        // special_tokens_map.json may have brought the older name.
        if !settings.contains_key("extra_special_tokens")
            && let Some(older) = settings.shift_remove("additional_special_tokens")
        {
            settings.insert("extra_special_tokens".into(), older);
        }
        let ids = by_id.iter().map(|(id, token)| (*id, token.content.clone())).collect();
        let to_add = in_order(folder, &settings, &specific, by_id, tokenizer)?;
        Ok(Self { to_add, ids })
    }
}

/// Every token to add to the tokenizer: first those with ids, then the named ones, then the rest.
fn in_order(
    folder: &Path,
    settings: &Map<String, Value>,
    specific: &Map<String, Value>,
    by_id: BTreeMap<u32, AddedToken>,
    tokenizer: &Tokenizer,
) -> Result<Vec<AddedToken>> {
    let flags: HashMap<&str, &AddedToken> = by_id.values().map(|token| (token.content.as_str(), token)).collect();
    let token = |name: &str, value: &Value| {
        // An object with `__type` has a flag `special`; objects of older versions, without it, are special.
        Token::of(value, value.get("__type").is_none()).ok_or_else(|| {
            wrong(folder, CONFIG, &format!("{name} holds {value}"), "a token is a text, or an object with `content`")
        })
    };
    let mut named = Vec::new();
    for name in NAMED {
        if let Some(value) = settings.get(name).filter(|value| !value.is_null()) {
            let token = token(name, value)?;
            named.push(flags.get(token.content()).map_or(token, |known| Token::Flagged((*known).clone())));
        }
    }
    // A model's own names: those with flags come before plain texts.
    let of_model = settings.iter().filter(|(name, value)| {
        name.ends_with("_token") && !NAMED.contains(&name.as_str()) && Token::of(value, false).is_some()
    });
    let mut others: Map<String, Value> = of_model.map(|(name, value)| (name.clone(), value.clone())).collect();
    others.extend(specific.clone());
    for (name, value) in &others {
        named.push(token(name, value)?);
    }
    let extra: Vec<Token> =
        list(settings).iter().map(|value| token("extra_special_tokens", value)).collect::<Result<_>>()?;

    let there = tokenizer.get_added_tokens_decoder();
    let names: HashSet<&str> = named.iter().map(Token::content).collect();
    let mut known: HashSet<String> = there.values().map(|token| token.content.clone()).collect();
    let mut to_add: Vec<Token> = Vec::new();
    let missing = by_id.values().filter(|token| !there.values().any(|known| known == *token));
    to_add.extend(missing.cloned().map(Token::Flagged));
    known.extend(to_add.iter().map(|token| token.content().to_string()));
    for token in named.iter().chain(&extra) {
        if !known.contains(token.content()) && !to_add.contains(token) {
            to_add.push(token.clone());
        }
    }
    let flagged = |token: Token| match token {
        Token::Text(text) => AddedToken::from(text, true),
        Token::Flagged(token) => {
            let special = token.special || names.contains(token.content.as_str());
            AddedToken { special, ..token }
        }
    };
    Ok(to_add.into_iter().map(flagged).collect())
}

/// The special tokens with names of the model's own: plain texts under `*_token`, and the entries of an object.
fn take_specific(settings: &mut Map<String, Value>) -> Map<String, Value> {
    let is_one =
        |name: &String, value: &Value| name.ends_with("_token") && !NAMED.contains(&name.as_str()) && value.is_string();
    let names: Vec<String> =
        settings.iter().filter(|(name, value)| is_one(name, value)).map(|(name, _)| name.clone()).collect();
    let mut specific: Map<String, Value> =
        names.into_iter().filter_map(|name| settings.shift_remove_entry(&name)).collect();
    take_object(settings, &mut specific);
    specific
}

fn take_object(settings: &mut Map<String, Value>, specific: &mut Map<String, Value>) {
    if settings.get("extra_special_tokens").is_some_and(Value::is_object)
        && let Some(Value::Object(named)) = settings.shift_remove("extra_special_tokens")
    {
        specific.extend(named);
    }
}

/// Puts special_tokens_map.json over tokenizer_config.json, if the latter lists no tokens with ids.
fn merge_map(settings: &mut Map<String, Value>, specific: &mut Map<String, Value>, map: Map<String, Value>) {
    for (name, value) in map {
        let value = match (name.as_str(), value) {
            ("extra_special_tokens", Value::Array(more)) => {
                let mut all = list(settings).to_vec();
                for value in more.into_iter().map(special) {
                    if !all.contains(&value) {
                        all.push(value);
                    }
                }
                Value::Array(all)
            }
            ("extra_special_tokens", value) => value,
            (_, value) => special(value),
        };
        settings.insert(name, value);
    }
    take_object(settings, specific);
}

/// A token of special_tokens_map.json: an object there is special, whatever its flag.
fn special(mut value: Value) -> Value {
    if let Value::Object(token) = &mut value {
        token.insert("special".into(), Value::Bool(true));
    }
    value
}

fn list(settings: &Map<String, Value>) -> &[Value] {
    settings.get("extra_special_tokens").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `{"ID": {"content": ...}, ...}`
fn with_ids(folder: &Path, listed: &Value) -> Result<BTreeMap<u32, AddedToken>> {
    let expected = "expected added_tokens_decoder = {\"ID\": {\"content\": \"TOKEN\", ...}, ...}";
    let entries =
        listed.as_object().ok_or_else(|| wrong(folder, CONFIG, "added_tokens_decoder is not an object", expected))?;
    let mut by_id = BTreeMap::new();
    for (id, token) in entries {
        match (id.parse(), Token::of(token, false)) {
            (Ok(id), Some(Token::Flagged(token))) => by_id.insert(id, token),
            _ => return Err(wrong(folder, CONFIG, &format!("added_tokens_decoder has {id:?}: {token}"), expected)),
        };
    }
    Ok(by_id)
}

/// The object in a file of the folder; empty if there is no such file.
fn object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(Map::new());
    }
    let bytes = files::read_within(&path, MOST_BYTES_BESIDE)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| wrong(folder, name, &error.to_string(), "get it again from where the model is from"))
}

fn wrong(folder: &Path, name: &str, what: &str, hint: &str) -> Error {
    Error::input(format!("{}: {what}", folder.join(name).display())).hint(hint)
}

/// Warns if tokens get other ids than in the files: ids follow from the order of adding, in Transformers, too.
fn warn_of_other_ids(folder: &Path, declared: &Declared, tokenizer: &Tokenizer) {
    let other = |(id, content): (&u32, &String)| {
        let is = tokenizer.token_to_id(content)?;
        (is != *id).then(|| format!("{content:?} is {is}, not {id}"))
    };
    let others: Vec<String> = declared.ids.iter().filter_map(other).collect();
    if let Some(first) = others.first() {
        tracing::warn!(
            "{}: {} added token(s) get a different id from the one in the files, as in Transformers: {first}",
            folder.display(),
            others.len()
        );
    }
}
