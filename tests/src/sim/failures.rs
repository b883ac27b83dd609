//! Failing seeds, kept as files: what was broken, how it is run again, and what happened.

use super::plan::{Fault, RunSpec};
use super::shrink::Shrunk;
use super::trace::{View, table};
use super::{Failure, run_kept};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Columns of the table in a file.
const WIDTH: usize = 132;

/// Where failing seeds are kept if nothing else is said: in cargo's folder, as cargo finds it.
#[must_use]
pub fn default_folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let found = || workspace.filter(|path| path.is_dir()).map_or_else(|| "target".into(), |path| path.join("target"));
    target.unwrap_or_else(found).join("ft-sim").join("failures")
}

/// A failure in a few lines: what was broken, and how it is run again.
#[must_use]
pub fn describe(failure: &Failure) -> String {
    let Failure { spec, rule, reason, at_ns, struck } = failure;
    let mut text = String::new();
    let _ =
        writeln!(text, "seed {} breaks a rule at {} ms, with {} faults", spec.seed, at_ns / 1_000_000, struck.len());
    let _ = writeln!(text, "  rule    {rule}");
    let _ = writeln!(text, "  reason  {reason}");
    let _ = writeln!(text, "  rerun   {}", spec.command());
    text
}

/// How much a failure was shrunk.
fn describe_shrinking(shrunk: &Shrunk) -> String {
    let Shrunk { failure, faults_before, at_ns_before, runs } = shrunk;
    let (before_ms, after_ms) = (at_ns_before / 1_000_000, failure.at_ns / 1_000_000);
    let after = failure.struck.len();
    format!("from {faults_before} faults to {after}, and from {before_ms} ms to {after_ms} ms, in {runs} runs")
}

/// Writes a failure to the folder, which is made if it isn't there. Returns the file.
///
/// # Errors
/// If the folder or the file can't be written.
pub fn keep(folder: &Path, shrunk: &Shrunk) -> io::Result<PathBuf> {
    let in_folder = |error: io::Error| {
        let text = format!("the failing seed can't be kept in {}: {error}", folder.display());
        io::Error::new(error.kind(), text)
    };
    let failure = &shrunk.failure;
    let (_, events) = run_kept(&failure.spec);
    let mut text = describe(failure);
    let whole = RunSpec { without: BTreeSet::new(), until_ms: None, ..failure.spec.clone() };
    let _ = writeln!(text, "  whole   {}", whole.command());
    let _ = writeln!(text, "  shrunk  {}", describe_shrinking(shrunk));
    let left = if failure.struck.is_empty() { " none" } else { "" };
    let _ = writeln!(text, "\nFaults that are left:{left}");
    for fault in &failure.struck {
        let events: Vec<_> = events.iter().filter(|event| event.fault == Some(*fault)).collect();
        let nothing = match fault {
            _ if !events.is_empty() => "",
            Fault::Habit(_) => "all the time",
            Fault::Planned(_) | Fault::Aimed(_) => "found nothing to strike",
        };
        let _ = writeln!(text, "  {fault:12}  {nothing}");
        for event in events {
            let _ = writeln!(text, "      at {} ms, {}: {}", event.at_ns / 1_000_000, event.lane, event.text);
        }
    }
    text.push('\n');
    text.push_str(&table(&events, &View::new(WIDTH, false)));
    let file = folder.join(format!("seed-{}.txt", failure.spec.seed));
    fs::create_dir_all(folder).map_err(in_folder)?;
    fs::write(&file, text).map_err(in_folder)?;
    Ok(file)
}

/// Shrinks the first failure of each rule, keeps all, and describes them. `goes_on` is told of each
/// run of the search, and ends it with `false`.
pub fn tell_all(folder: &Path, failures: &[Failure], goes_on: &mut dyn FnMut(&Shrunk) -> bool) -> Vec<Told> {
    let mut told: Vec<Told> = Vec::new();
    for failure in failures {
        let is_known = told.iter().any(|other| other.shrunk.failure.rule == failure.rule);
        // Others of the same rule are kept as they are.
        let shrunk = super::shrink(failure, &mut |shrunk| !is_known && goes_on(shrunk));
        let file = keep(folder, &shrunk);
        let mut text = describe(&shrunk.failure);
        if shrunk.runs > 0 {
            let _ = writeln!(text, "  shrunk  {}", describe_shrinking(&shrunk));
        }
        let _ = match &file {
            Ok(file) => writeln!(text, "  kept    {}", file.display()),
            Err(error) => writeln!(text, "  kept    no: {error}"),
        };
        told.push(Told { shrunk, file: file.ok(), text });
    }
    told
}

/// A failure that has been shrunk and kept.
#[derive(Clone, Debug)]
pub struct Told {
    /// The failure.
    pub shrunk: Shrunk,
    /// Where it is kept.
    pub file: Option<PathBuf>,
    /// The failure in words.
    pub text: String,
}
