//! The documents name only what exists: their links lead somewhere, and the files, tests, options
//! and names in code that they mention are there. Lines of documents and of comments have at most
//! 100 columns.
//!
//! A name in a document is text between backticks, outside code blocks. What is checked:
//!
//! | looks like | must be |
//! |---|---|
//! | a path | one file, by its last parts (`primary/lag.rs`), or a folder |
//! | `snake_case`, `TwoWords`, `UPPER_CASE`, `some::path` | words of the code; an event may be there as its variant |
//! | `--option` | an option of a program, or one that `.ci/` uses |
//! | any name in a table's column `test` | a function with `#[test]` |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Columns of prose, in documents and in comments.
const COLUMNS_MAX: usize = 100;

/// Folders without files of this project.
const FOREIGN: [&str; 5] = ["target", ".git", "artifacts", "corpus", "node_modules"];

/// Folders that the build makes, which don't exist before.
const MADE: [&str; 2] = ["target/", "fetch/"];

/// Names allowed at the top level besides configuration, whose names begin with a dot or end with
/// `.toml` or `.lock`.
const TOP_LEVEL: [&str; 11] = [
    "vm",
    "hypervisor",
    "logchannel",
    "guest-programs",
    "tests",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// A text file, and its path from the top of the workspace.
struct Text {
    path: String,
    content: String,
}

/// All text files under `folder`.
fn texts(folder: &Path, found: &mut Vec<Text>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !FOREIGN.contains(&name.as_str()) {
                texts(&path, found);
            }
        } else if let Ok(content) = fs::read_to_string(&path) {
            let path = path.strip_prefix(workspace()).unwrap().to_string_lossy().into_owned();
            found.push(Text { path, content });
        }
    }
}

fn all_texts() -> Vec<Text> {
    let mut found = Vec::new();
    texts(&workspace(), &mut found);
    found
}

fn documents(texts: &[Text]) -> impl Iterator<Item = &Text> {
    texts.iter().filter(|text| text.path.ends_with(".md"))
}

/// A document's lines outside code blocks, with their numbers.
fn prose(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    content.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            return None;
        }
        (!is_code).then_some((index + 1, line))
    })
}

/// The texts between backticks in a line.
fn spans(line: &str) -> Vec<&str> {
    let parts: Vec<_> = line.split('`').collect();
    // Text after a backtick without a partner doesn't count.
    parts[..parts.len() - (parts.len() + 1) % 2].iter().skip(1).step_by(2).copied().collect()
}

/// The targets of a line's links.
fn links(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The code: sources, manifests and scripts, but not this file, whose examples need not exist.
fn code(texts: &[Text]) -> impl Iterator<Item = &Text> {
    texts.iter().filter(|text| [".md", ".lock", "documents.rs"].iter().all(|end| !text.path.ends_with(end)))
}

/// All words of the code.
fn words(texts: &[Text]) -> BTreeSet<&str> {
    code(texts).flat_map(|text| text.content.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))).collect()
}

/// The names of all tests.
fn tests(texts: &[Text]) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for text in texts.iter().filter(|text| text.path.ends_with(".rs")) {
        for part in text.content.split("#[test]").skip(1) {
            let name = part.split("fn ").nth(1).and_then(|rest| rest.split(['(', '<']).next());
            found.extend(name);
        }
    }
    found
}

/// `SomethingLikeThis` of `something_like_this`: reports are variants in code, and events outside.
fn variant(event: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    event.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}

/// `true` if `name` has the form of a name in code.
fn looks_like_code(name: &str) -> bool {
    let capitals = name.chars().filter(char::is_ascii_uppercase).count();
    let has_small = name.chars().any(|c| c.is_ascii_lowercase());
    let begins_with_letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    is_word(name) && begins_with_letter && (name.trim_matches('_').contains('_') || (capitals > 1 && has_small))
}

fn looks_like_path(span: &str) -> bool {
    let is_plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let extensions = [".rs", ".md", ".toml", ".sh", ".lock", ".ld", ".py"];
    let has_extension = extensions.iter().any(|extension| span.len() > extension.len() && span.ends_with(extension));
    let is_own = !span.starts_with(['/', '.']) || span.starts_with(".ci");
    is_plain && is_own && (span.contains('/') || has_extension)
}

/// The error in the path `named` of the document `document`, if there is one.
fn wrong_path(texts: &[Text], document: &str, named: &str) -> Option<String> {
    let beside = Path::new(document).parent().unwrap().join(named);
    if workspace().join(&beside).exists() || MADE.iter().any(|made| named.starts_with(made)) {
        return None;
    }
    let folder = format!("{}/", named.trim_end_matches('/'));
    let is_folder =
        texts.iter().any(|text| text.path.starts_with(&folder) || text.path.contains(&format!("/{folder}")));
    let end = format!("/{named}");
    let files: Vec<_> = texts.iter().filter(|text| text.path == named || text.path.ends_with(&end)).collect();
    match files.len() {
        0 if is_folder => None,
        0 => Some(format!("there is no {named}")),
        1 => None,
        _ if files.iter().any(|text| text.path == named) => None,
        _ => Some(format!("{named} may be any of {:?}", files.iter().map(|text| &text.path).collect::<Vec<_>>())),
    }
}

/// The error in the name `span`, if there is one.
fn wrong_name(texts: &[Text], words: &BTreeSet<&str>, document: &str, span: &str) -> Option<String> {
    let is_known = |name: &str| words.contains(name) || words.contains(variant(name).as_str());
    if looks_like_path(span) {
        return wrong_path(texts, document, span);
    }
    if let Some(option) = span.strip_prefix("--") {
        let option = option.split([' ', '=']).next().unwrap_or_default();
        let is_used = words.contains(option.replace('-', "_").as_str())
            || code(texts).any(|text| text.content.contains(&format!("--{option}")));
        return (!is_used).then(|| format!("there is no option --{option}"));
    }
    let name = span.trim_end_matches("()");
    let parts: Vec<_> = name.split("::").collect();
    if parts.len() > 1 && parts.iter().all(|part| is_word(part)) {
        let missing = parts.iter().find(|part| !is_known(part))?;
        return Some(format!("the code has no {missing} (of {span})"));
    }
    (looks_like_code(name) && !is_known(name)).then(|| format!("the code has no {name}"))
}

#[test]
fn links_have_targets() {
    let texts = all_texts();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for Text { path, content } in documents(&texts) {
        for (number, line) in prose(content) {
            for link in links(line).into_iter().filter(|link| !link.contains("://")) {
                checked += 1;
                let (file, heading) =
                    link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
                let target = match file {
                    "" => workspace().join(path),
                    file => workspace().join(path).parent().unwrap().join(file),
                };
                let Ok(target_content) = fs::read_to_string(&target) else {
                    if !target.is_dir() {
                        wrong.push(format!("{path}:{number}: {link} leads nowhere"));
                    }
                    continue;
                };
                if let Some(heading) = heading {
                    let mut headings = prose(&target_content).filter(|(_, line)| line.starts_with('#'));
                    if !headings.any(|(_, line)| anchor(line) == heading) {
                        wrong.push(format!("{path}:{number}: {link}: there is no such heading"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 30, "{checked} links were found");
}

#[test]
fn names_in_documents_exist() {
    let texts = all_texts();
    let words = words(&texts);
    let mut wrong = Vec::new();
    let mut checked = 0;
    // The changelog may name what no longer exists.
    for Text { path, content } in documents(&texts).filter(|text| text.path != "CHANGELOG.md") {
        for (number, line) in prose(content) {
            // A link's text may be short, as its target is checked.
            for span in spans(line).into_iter().filter(|span| !line.contains(&format!("[`{span}`]("))) {
                checked += 1;
                let found = wrong_name(&texts, &words, path, span);
                wrong.extend(found.map(|found| format!("{path}:{number}: {found}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 500, "{checked} names were found");
}

#[test]
fn tests_that_documents_name_are_tests() {
    let texts = all_texts();
    let tests = tests(&texts);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for Text { path, content } in documents(&texts) {
        let mut column = None;
        for (number, line) in prose(content) {
            if !line.starts_with('|') {
                column = None;
                continue;
            }
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            match column {
                None => column = Some(cells.iter().position(|cell| *cell == "test")),
                Some(None) => {}
                Some(Some(column)) => {
                    let named = spans(cells.get(column).copied().unwrap_or_default());
                    let named: Vec<_> = named.into_iter().filter(|span| is_word(span)).collect();
                    checked += named.len();
                    let missing = named.into_iter().filter(|name| !tests.contains(name));
                    wrong.extend(missing.map(|name| format!("{path}:{number}: there is no test {name}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 50, "{checked} tests were found");
}

/// The words that follow each `option` in a command.
fn arguments<'a>(command: &'a str, option: &str) -> Vec<&'a str> {
    let words: Vec<_> = command.split(|c: char| c.is_whitespace() || "`\"'()|".contains(c)).collect();
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].trim_end_matches(['.', ',', ';'])).collect()
}

/// A command that a failed test prints must run that test again.
#[test]
fn commands_in_documents_code_and_ci_name_test_binaries_that_exist() {
    let texts = all_texts();
    let mut wrong = Vec::new();
    let mut checked = 0;
    let is_current = |text: &&Text| text.path != "CHANGELOG.md" && !text.path.ends_with("project/documents.rs");
    for Text { path, content } in texts.iter().filter(is_current) {
        for (number, line) in (1..).zip(content.lines()) {
            let Some((_, command)) = line.split_once("cargo test ") else { continue };
            let package = arguments(command, "-p").into_iter().chain(arguments(command, "--package")).next();
            let Some(package) = package else { continue };
            let folder = if package == "ft" { "hypervisor/ft" } else { package };
            for binary in arguments(command, "--test").into_iter().filter(|binary| is_word(binary)) {
                checked += 1;
                let files = [format!("{folder}/tests/{binary}.rs"), format!("{folder}/tests/{binary}/main.rs")];
                if !texts.iter().any(|text| files.contains(&text.path)) {
                    wrong.push(format!("{path}:{number}: {package} has no test binary {binary}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 10, "{checked} commands were found");
}

/// `true` if a line may be longer: a row of a table, or a line with a link.
fn may_be_longer(line: &str) -> bool {
    line.starts_with('|') || line.contains("](") || line.contains("://")
}

#[test]
fn lines_of_documents_and_comments_have_100_columns() {
    let texts = all_texts();
    let mut long = Vec::new();
    for Text { path, content } in documents(&texts) {
        let lines = prose(content).filter(|(_, line)| line.chars().count() > COLUMNS_MAX && !may_be_longer(line));
        long.extend(lines.map(|(number, _)| format!("{path}:{number}")));
    }
    for Text { path, content } in texts.iter().filter(|text| text.path.ends_with(".rs")) {
        let mut is_code = false;
        for (number, line) in content.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
            let comment = comment.trim_start_matches(['/', '!']).trim_start();
            is_code ^= comment.starts_with("```");
            if line.chars().count() > COLUMNS_MAX && !is_code && !may_be_longer(comment) {
                long.push(format!("{path}:{}", number + 1));
            }
        }
    }
    assert!(long.is_empty(), "longer than {COLUMNS_MAX} columns: {long:#?}");
}

#[test]
fn the_top_level_holds_the_crates_the_documents_and_configuration() {
    let names =
        fs::read_dir(workspace()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let is_configuration = |name: &str| name.starts_with('.') || name.ends_with(".toml") || name.ends_with(".lock");
    let others: Vec<_> = names
        .filter(|name| {
            !TOP_LEVEL.contains(&name.as_str()) && !FOREIGN.contains(&name.as_str()) && !is_configuration(name)
        })
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn names_are_told_by_their_form() {
    assert_eq!(spans("a `b` c `d_e` f"), ["b", "d_e"]);
    assert_eq!(spans("a `b` c ` d"), ["b"]);
    assert_eq!(links("see [a](b.md#c) and [d](https://e)"), ["b.md#c", "https://e"]);
    assert_eq!(anchor("## How long the Output Rule holds outputs"), "how-long-the-output-rule-holds-outputs");
    assert_eq!(anchor("## Promise, mechanism, test"), "promise-mechanism-test");
    assert_eq!(variant("claims_lost"), "ClaimsLost");
    for path in ["primary/lag.rs", "README.md", "node/log/", ".ci/run"] {
        assert!(looks_like_path(path), "{path}");
    }
    for no_path in ["/var/lib/ft", "ft-primary", "tcp:HOST:PORT", "no_std", ".part"] {
        assert!(!looks_like_path(no_path), "{no_path}");
    }
    for name in ["claims_lost", "OutputGate", "LOG_BUFFER_BYTES_MAX"] {
        assert!(looks_like_code(name), "{name}");
    }
    for no_name in ["hello", "Image", "SIGTERM", "7us", "64M", "a b"] {
        assert!(!looks_like_code(no_name), "{no_name}");
    }
    let texts = all_texts();
    assert!(wrong_path(&texts, "README.md", "primary/no_such_file.rs").is_some());
    assert!(wrong_path(&texts, "README.md", "mod.rs").is_some(), "it may be any");
    assert!(wrong_path(&texts, "README.md", "hypervisor/src/lib.rs").is_none());
    let words = words(&texts);
    for missing in ["no_such_name_anywhere", "NoSuchName", "--no-such-option", "PrimaryRole::no_such_thing"] {
        assert!(wrong_name(&texts, &words, "README.md", missing).is_some(), "{missing}");
    }
    assert!(tests(&texts).contains("names_are_told_by_their_form"));
}

/// The last table of PROTOCOL.md names each mutation beside the promise that it breaks.
#[test]
fn every_mutation_stands_beside_its_promise() {
    let read = |path: &str| fs::read_to_string(workspace().join(path)).unwrap();
    let (code, protocol) = (read("hypervisor/ft/src/mutation.rs"), read("hypervisor/PROTOCOL.md"));
    let variants = code.split_once("pub enum Mutation {").unwrap().1.split_once("\n}").unwrap().0;
    let names = variants.lines().filter_map(|line| line.trim().strip_suffix(','));
    let names: Vec<_> = names.filter(|name| name.chars().all(char::is_alphanumeric)).collect();
    assert!(names.len() > 40, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !protocol.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "PROTOCOL.md says nothing of {missing:?}");
}
