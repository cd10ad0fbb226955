//! Which parameters each part of a model has: their names, shapes, and places in the part's segment.
//!
//! Not here: what is computed with them (`decoder.rs`).
//!
//! Legend: D width, H query heads, G key/value heads, E head width, F width of the MLP, V vocabulary.

use super::config::Architecture;
use std::ops::Range;
use tch::Tensor;

/// Name of the reward head, in every family.
pub const REWARD_HEAD: &str = "score.weight";

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The token embedding, and with tied weights the vocabulary product too.
    Embedding,
    /// The block of this number.
    Block(usize),
    /// The final norm.
    Norm,
    /// The untied language-model head.
    LanguageModelHead,
    /// The scalar reward head, always computed in f32.
    RewardHead,
    /// The adapters of the block of this number; after all others, and only where a model has adapters.
    Adapter(usize),
}

/// A parameter as a model's files have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// The order of its rows.
    pub rows: Rows,
}

impl Declared {
    /// A parameter whose rows are in memory as they are in files.
    pub fn new(name: impl Into<String>, shape: &[i64]) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), rows: Rows::AsInMemory }
    }
}

/// The order of a parameter's rows in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As in memory.
    AsInMemory,
    /// Those of a head's query, key and value together [H, 3, E], for so many heads; in memory [3, H, E].
    HeadByHead(i64),
}

impl Rows {
    /// Values from a file, as they are in memory.
    pub fn to_memory(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [heads, 3]),
        }
    }

    /// Values from memory, as they are in files.
    pub fn to_file(self, values: &Tensor) -> Tensor {
        match self {
            Self::AsInMemory => values.shallow_clone(),
            Self::HeadByHead(heads) => swapped(values, [3, heads]),
        }
    }
}

/// Rows [a, b, E] -> [b, a, E], in the shape that they had.
fn swapped(values: &Tensor, [outer, inner]: [i64; 2]) -> Tensor {
    let shape = values.size();
    let cut = [&[outer, inner, shape[0] / (outer * inner)], &shape[1..]].concat();
    values.view(cut.as_slice()).transpose(0, 1).reshape(shape.as_slice())
}

impl Part {
    /// Every part of a model but its adapters, in the order of the forward pass.
    pub fn all(architecture: &Architecture) -> Vec<Self> {
        let mut parts = vec![Self::Embedding];
        parts.extend((0..architecture.layers).map(Self::Block));
        parts.push(Self::Norm);
        if !architecture.tied {
            parts.push(Self::LanguageModelHead);
        }
        parts.push(Self::RewardHead);
        parts
    }

    /// The part's parameters, in the order of its segment. Those of adapters are
    /// [`Lora::parameters`](super::lora::Lora::parameters).
    pub fn parameters(self, architecture: &Architecture) -> Vec<Declared> {
        let Architecture { vocabulary, width, biases, names, .. } = architecture;
        let (vocabulary, width) = (*vocabulary as i64, *width as i64);
        match self {
            Self::Embedding => vec![Declared::new(format!("{}.weight", names.embedding), &[vocabulary, width])],
            Self::Norm => {
                let kinds = architecture.norm.parameters().iter();
                kinds.map(|kind| Declared::new(format!("{}.{kind}", names.norm), &[width])).collect()
            }
            Self::LanguageModelHead => {
                let mut head = vec![Declared::new(format!("{}.weight", names.head[0]), &[vocabulary, width])];
                if biases.head {
                    head.push(Declared::new(format!("{}.bias", names.head[0]), &[vocabulary]));
                }
                head
            }
            Self::RewardHead => vec![Declared::new(REWARD_HEAD, &[1, width])],
            Self::Block(index) => block(architecture, index),
            Self::Adapter(_) => Vec::new(),
        }
    }
}

/// Parameters of a linear map, or of several that lie side by side and are one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Places of the matrices.
    pub weights: Range<usize>,
    /// Places of their biases.
    pub biases: Option<Range<usize>>,
}

/// Where a block's parameters lie in its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The norm before attention.
    pub input_norm: usize,
    /// Queries, keys and values.
    pub query_key_value: Projection,
    /// Attention's output.
    pub attention_output: Projection,
    /// The norm of each query; that of each key is next.
    pub head_norms: Option<usize>,
    /// The norm of what attention adds.
    pub post_attention_norm: Option<usize>,
    /// The norm before the MLP: `input_norm` where there is no other.
    pub mlp_norm: usize,
    /// Gate and up, or up alone.
    pub up: Projection,
    /// The MLP's output.
    pub down: Projection,
    /// The norm of what the MLP adds.
    pub post_mlp_norm: Option<usize>,
    /// How many parameters there are.
    count: usize,
}

impl Places {
    /// Matrices and norms in the order of the forward pass, then all biases of linear maps.
    pub fn of(architecture: &Architecture) -> Self {
        let Architecture { names, biases, norm, .. } = architecture;
        let mut count = 0;
        let mut take = |parameters: usize| {
            count += parameters;
            count - parameters..count
        };
        let norm = norm.parameters().len();
        let input_norm = take(norm).start;
        let query_key_value = take(names.query_key_value.len());
        let attention_output = take(1);
        let head_norms = names.head_norms.map(|both| take(both.len()).start);
        let post_attention_norm = names.post_attention_norm.map(|_| take(norm).start);
        let mlp_norm = names.mlp_norm.map_or(input_norm, |_| take(norm).start);
        let up = take(names.up.len());
        let down = take(1);
        let post_mlp_norm = names.post_mlp_norm.map(|_| take(norm).start);
        let mut project = |weights: Range<usize>, biased: bool| {
            let biases = biased.then(|| take(weights.len()));
            Projection { weights, biases }
        };
        Self {
            input_norm,
            query_key_value: project(query_key_value, biases.query_key_value),
            attention_output: project(attention_output, biases.attention_output),
            head_norms,
            post_attention_norm,
            mlp_norm,
            up: project(up, biases.mlp),
            down: project(down, biases.mlp),
            post_mlp_norm,
            count,
        }
    }
}

/// A block's parameters, each at its place.
fn block(architecture: &Architecture, index: usize) -> Vec<Declared> {
    let Architecture { width, mlp_width, heads, kv_heads, head_width, names, .. } = architecture;
    let [width, mlp, head] = [*width, *mlp_width, *head_width].map(|size| size as i64);
    let [query, key] = [*heads, *kv_heads].map(|heads| heads as i64 * head);
    let places = Places::of(architecture);
    let mut all = vec![Declared::new("", &[]); places.count];
    let mut put = |place: usize, name: &str, kind: &str, shape: Vec<i64>, rows| {
        all[place] = Declared { name: format!("{}{index}.{name}.{kind}", names.block), shape, rows };
    };
    let mut norm = |place: usize, name: &str| {
        for (offset, kind) in architecture.norm.parameters().iter().enumerate() {
            put(place + offset, name, kind, vec![width], Rows::AsInMemory);
        }
    };
    norm(places.input_norm, names.input_norm);
    for (place, name) in [
        (places.post_attention_norm, names.post_attention_norm),
        (names.mlp_norm.map(|_| places.mlp_norm), names.mlp_norm),
        (places.post_mlp_norm, names.post_mlp_norm),
    ] {
        if let (Some(place), Some(name)) = (place, name) {
            norm(place, name);
        }
    }
    if let (Some(place), Some(both)) = (places.head_norms, names.head_norms) {
        for (offset, name) in both.iter().enumerate() {
            put(place + offset, name, "weight", vec![head], Rows::AsInMemory);
        }
    }
    // One matrix holds the rows of all.
    let stacked = |outputs: &[i64], names: &[&str]| match names.len() {
        1 => vec![outputs.iter().sum()],
        _ => outputs.to_vec(),
    };
    let by_head = if architecture.head_by_head { Rows::HeadByHead(*heads as i64) } else { Rows::AsInMemory };
    let inner = if architecture.gated { &[mlp, mlp][..] } else { &[mlp] };
    for (projection, names, outputs, inputs, rows) in [
        (&places.query_key_value, names.query_key_value, &[query, key, key][..], width, by_head),
        (&places.attention_output, &[names.attention_output], &[width], query, Rows::AsInMemory),
        (&places.up, names.up, inner, width, Rows::AsInMemory),
        (&places.down, &[names.down], &[width], mlp, Rows::AsInMemory),
    ] {
        for (at, (name, outputs)) in names.iter().zip(stacked(outputs, names)).enumerate() {
            put(projection.weights.start + at, name, "weight", vec![outputs, inputs], rows);
            if let Some(biases) = &projection.biases {
                put(biases.start + at, name, "bias", vec![outputs], rows);
            }
        }
    }
    all
}
