//! Writes spans as a Chrome trace, for chrome://tracing and <https://ui.perfetto.dev>: the array form of JSON.
//!
//! When a span ends, it is written as one event with its start and duration, so that the trace of a killed process has all
//! spans that had ended. The closing bracket is written at the end of the program; the format does not require it. The clock
//! counts microseconds from the midnight (UTC) before the trace began, so that the ranks' files share a time line with each
//! other and with the log. On a GPU a span shows when work was queued, not when it was done.
//!
//! Not here: log lines and which spans there are. Own code because `tracing-chrome` gives every process the number 1,
//! panics if a file cannot be written, and may lose its buffer when a process is killed.

use crate::error::{Result, file_error};
use crate::files;
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A killed process loses at most this much of its trace.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// The trace of this process; none before [`open`] and after [`close`].
static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

/// The trace file, its process and its clock.
struct Trace {
    path: PathBuf,
    /// None before the first span.
    to: Option<BufWriter<File>>,
    process: usize,
    /// When the trace began, and the microseconds from midnight to then.
    began: Instant,
    offset: Duration,
    flushed: Instant,
    /// Threads whose names are in the file.
    named: Vec<u64>,
    failed: Option<io::Error>,
}

/// The file of one of several ranks: `trace.json` becomes `trace.rank-1.json`.
pub(super) fn path_of(file: &Path, rank: usize, world_size: usize) -> PathBuf {
    if world_size == 1 {
        return file.to_path_buf();
    }
    match file.extension() {
        Some(extension) => file.with_extension(format!("rank-{rank}.{}", extension.to_string_lossy())),
        None => file.with_extension(format!("rank-{rank}")),
    }
}

/// Starts the trace of this process. The file is created with the first span, so that a refused run leaves none; here it is
/// only checked that it can be.
pub(super) fn open(path: &Path, process: usize) -> Result<()> {
    files::clear_unfinished_beside(path);
    files::unfinished_file(path).map_err(|error| file_error(path, "create the trace", &error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let began = Instant::now();
    let offset = now - Duration::from_secs(now.as_secs() / 86_400 * 86_400);
    let path = path.to_path_buf();
    *lock() = Some(Trace { path, to: None, process, began, offset, flushed: began, named: Vec::new(), failed: None });
    Ok(())
}

/// Ends the trace.
pub(super) fn close() -> Result<()> {
    let Some(mut trace) = lock().take() else { return Ok(()) };
    if trace.to.is_some() {
        trace.write("\n]\n");
        trace.flush();
    }
    trace.failed.map_or(Ok(()), |error| Err(file_error(&trace.path, "write the whole trace to", &error)))
}

fn lock() -> MutexGuard<'static, Option<Trace>> {
    TRACE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trace {
    /// Writes whole events only: the buffer passes each on in one piece.
    fn write(&mut self, text: &str) {
        if let (Some(to), None) = (&mut self.to, &self.failed) {
            self.failed = to.write_all(text.as_bytes()).err();
        }
    }

    fn flush(&mut self) {
        if let (Some(to), None) = (&mut self.to, &self.failed) {
            self.failed = to.flush().err();
        }
    }

    fn create(&mut self) {
        match File::create_new(&self.path) {
            Ok(file) => self.to = Some(BufWriter::with_capacity(1 << 16, file)),
            Err(error) => self.failed = Some(error),
        }
        let process = self.process;
        let name = json!({"name": "process_name", "ph": "M", "pid": process, "tid": 0,
                          "args": {"name": format!("rank {process}")}});
        self.write(&format!("[\n{name}"));
    }

    fn span(&mut self, metadata: &Metadata, began: Instant, arguments: &Map<String, Value>) {
        let (thread, ended) = (thread(), Instant::now());
        let process = self.process;
        if self.to.is_none() && self.failed.is_none() {
            self.create();
        }
        if !self.named.contains(&thread) {
            self.named.push(thread);
            let name = json!({"name": "thread_name", "ph": "M", "pid": process, "tid": thread,
                              "args": {"name": std::thread::current().name().unwrap_or("without a name")}});
            self.write(&format!(",\n{name}"));
        }
        let at = (self.offset + began.saturating_duration_since(self.began)).as_nanos();
        let took = (ended - began).as_nanos();
        // Numbers are formatted by hand: a float would round them.
        let text = format!(
            ",\n{{\"name\":{},\"cat\":\"{}\",\"ph\":\"X\",\"pid\":{process},\"tid\":{thread},\"ts\":{}.{:03},\
             \"dur\":{}.{:03},\"args\":{}}}",
            Value::from(metadata.name()),
            metadata.target(),
            at / 1000,
            at % 1000,
            took / 1000,
            took % 1000,
            Value::from(arguments.clone())
        );
        self.write(&text);
        if ended - self.flushed >= FLUSH_EVERY {
            self.flushed = ended;
            self.flush();
        }
    }
}

/// This thread's number in the trace, from 1 in the order of first use.
fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static MINE: Cell<u64> = const { Cell::new(0) });
    if MINE.get() == 0 {
        MINE.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    MINE.get()
}

/// A layer that takes this crate's spans, whatever the log's filter, and no log events.
pub(super) fn layer<S: Subscriber + for<'s> LookupSpan<'s>>() -> impl Layer<S> {
    let ours = |metadata: &Metadata| metadata.is_span() && metadata.target().starts_with("haf_dist");
    Spans.with_filter(FilterFn::new(ours).with_max_level_hint(Level::TRACE))
}

struct Spans;

/// A span's fields.
#[derive(Default)]
struct Arguments(Map<String, Value>);

/// When a span was entered.
struct Entered(Instant);

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut arguments = Arguments::default();
        attributes.record(&mut arguments);
        span.extensions_mut().insert(arguments);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(arguments) = span.extensions_mut().get_mut::<Arguments>() {
            values.record(arguments);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(Entered(Instant::now()));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let (Some(Entered(began)), Some(Arguments(arguments))) = (extensions.get(), extensions.get()) else { return };
        if let Some(trace) = &mut *lock() {
            trace.span(span.metadata(), *began, arguments);
        }
    }
}

impl Visit for Arguments {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_string(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_string(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_string(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_string(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_string(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_string(), format!("{value:?}").into());
    }
}
