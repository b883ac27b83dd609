//! Marks: names for moments, kept beside the recording.
//!
//! A small text file of JSON lines, so that it can be read, sent along and merged by hand. It names
//! the log that it is of, and marks of another one are refused.

use super::position::check_name;
use super::{Moment, Recording};
use logchannel::entry::LogSeq;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use vm::InstructionCount;

/// The longest file of marks, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why marks can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The host refuses.
    #[error("can't use the marks in {}: {source}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line can't be read.
    #[error("line {line} of the marks in {} can't be read: {why}; correct or remove the file", .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// They are of another log.
    #[error("the marks in {} are of another recording; remove or rename the file", .0.display())]
    Foreign(PathBuf),
    /// There is no mark of this name.
    #[error("there is no mark `{name}`{}", match .known.is_empty() {
        true => "; `ft-replay mark LOG add NAME POSITION` makes one".to_owned(),
        false => format!("; the marks are {}", .known.join(", ")),
    })]
    Unknown {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The name is taken.
    #[error("there is a mark `{0}` already; remove it first")]
    Taken(String),
    /// The name can't be that of a mark.
    #[error("`{name}` can't be the name of a mark: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
}

/// A name for a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The name.
    pub name: String,
    /// The machine's instruction count.
    pub instruction_count: u64,
    /// The position of the next entry.
    pub entry: u64,
}

impl Mark {
    /// The moment.
    #[must_use]
    pub const fn moment(&self) -> Moment {
        Moment { count: InstructionCount(self.instruction_count), seq: LogSeq(self.entry) }
    }
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    /// The VM's name.
    marks_of: String,
    /// The seed of the VM's random numbers, which logs share only if they are of one recording.
    seed: String,
}

impl Head {
    fn of(recording: &Recording) -> Self {
        let header = recording.parts()[0].header();
        let seed = header.config.rng_seed.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { marks_of: header.vm.to_string(), seed }
    }
}

/// The marks of a recording.
#[derive(Debug)]
pub struct Marks {
    path: PathBuf,
    head: String,
    marks: Vec<Mark>,
}

impl Marks {
    /// Reads the marks of a recording; none if there is no file.
    ///
    /// # Errors
    /// [`MarksError`] if the file can't be read, or is of another recording.
    pub fn of(recording: &Recording) -> Result<Self, MarksError> {
        let path = recording.marks_path();
        let head = serde_json::to_string(&Head::of(recording)).expect("plain structs with string keys");
        let io = |source| MarksError::Io { path: path.clone(), source };
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) if !file.metadata().map_err(io)?.is_file() => {
                return Err(io(io::Error::other("it is no regular file")));
            }
            Ok(file) => drop(file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let mut marks: Vec<Mark> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let bad = |why: String| MarksError::Line { path: path.clone(), line: number + 1, why };
            if number == 0 {
                let found: Head = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
                if found.seed != Head::of(recording).seed {
                    return Err(MarksError::Foreign(path));
                }
                continue;
            }
            let mark: Mark = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            check_name(&mark.name).map_err(bad)?;
            if marks.iter().any(|other| other.name == mark.name) {
                return Err(bad(format!("`{}` is there twice", mark.name)));
            }
            marks.push(mark);
        }
        Ok(Self { path, head, marks })
    }

    /// All of them, in the order of their moments.
    #[must_use]
    pub fn all(&self) -> &[Mark] {
        &self.marks
    }

    /// The mark with this name.
    ///
    /// # Errors
    /// [`MarksError::Unknown`].
    pub fn get(&self, name: &str) -> Result<&Mark, MarksError> {
        let found = self.marks.iter().find(|mark| mark.name == name);
        let known = || self.marks.iter().map(|mark| mark.name.clone()).collect();
        found.ok_or_else(|| MarksError::Unknown { name: name.into(), known: known() })
    }

    /// Adds a mark.
    ///
    /// # Errors
    /// [`MarksError`] if the name is taken or none, or the file can't be written.
    pub fn add(&mut self, name: &str, moment: Moment) -> Result<(), MarksError> {
        check_name(name).map_err(|why| MarksError::Name { name: name.into(), why })?;
        if self.marks.iter().any(|mark| mark.name == name) {
            return Err(MarksError::Taken(name.into()));
        }
        let mark = Mark { name: name.into(), instruction_count: moment.count.0, entry: moment.seq.0 };
        self.marks.push(mark);
        self.marks.sort_by_key(|mark| (mark.instruction_count, mark.entry));
        self.write()
    }

    /// Removes a mark.
    ///
    /// # Errors
    /// [`MarksError`] if there is none of this name, or the file can't be written.
    pub fn remove(&mut self, name: &str) -> Result<(), MarksError> {
        self.get(name)?;
        self.marks.retain(|mark| mark.name != name);
        self.write()
    }

    /// Replaces the file, so that it is whole at any time.
    fn write(&self) -> Result<(), MarksError> {
        let io = |source| MarksError::Io { path: self.path.clone(), source };
        let mut text = format!("{}\n", self.head);
        for mark in &self.marks {
            text.push_str(&serde_json::to_string(mark).expect("plain structs with string keys"));
            text.push('\n');
        }
        let mut part = self.path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let written = File::create(&part).and_then(|mut file| file.write_all(text.as_bytes()));
        written.and_then(|()| fs::rename(&part, &self.path)).map_err(io)
    }
}
